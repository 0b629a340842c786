"""``winnow lineage`` and ``winnow diff`` as a person types them: exit codes, JSON, one line for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.lineage.trace import trace
from tasks.summary import RunSummary
from tasks.version import open_version
from tests.traced import TWICE, two_runs

QUICK = "import sys; from flows.cli import main; sys.argv[0] = 'winnow'; main()"


@dataclass
class Root:
    url: str
    first: RunSummary
    second: RunSummary

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", QUICK, *arguments], capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Root]:
    with two_runs(tmp_path_factory.mktemp("tracing")) as made:
        yield Root(str(made.root), made.first, made.second)


def test_lineage_prints_a_tree_and_nothing_else(root: Root) -> None:
    done = root.run("lineage", root.url, "doc-2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"doc-2  source document\nas run {root.second.run_id} (done) left it in {root.url}\n")
    assert "├── decision  keep, because lang = 'en'" in done.stdout and "\x1b" not in done.stdout


def test_lineage_gives_everything_as_json(root: Root) -> None:
    done = root.run("lineage", f"{root.url}@{root.first.run_id}", TWICE, "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 0 and told["run"] == root.first.run_id and len(told["documents"]) == 3
    assert told["documents"][0]["rewritings"][0]["making"]["weights"]
    assert told["search"]["complete"] is True


def test_an_id_that_is_nowhere_is_one_line_and_exit_code_2(root: Root) -> None:
    done = root.run("lineage", root.url, "nobody")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("winnow: 'nobody' is no id in ") and "read the ids of all 6 shards" in done.stderr
    assert root.run("lineage", root.url, "doc-2", "--shard", "nowhere").returncode == 2


@pytest.mark.parametrize("command", [["lineage", "{}", "doc-1"], ["diff", "{}", "{}"]])
def test_a_root_without_a_run_is_refused(tmp_path: Path, command: list[str]) -> None:
    arguments = [one.format(tmp_path) for one in command]
    done = subprocess.run([sys.executable, "-c", QUICK, *arguments], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"winnow: {tmp_path}: no run has ended here; give the --output of one, or wait for it\n"


def test_diff_ends_as_diff_does(root: Root) -> None:
    first = f"{root.url}@{root.first.run_id}"
    other = root.run("diff", first, root.url)
    assert (other.returncode, other.stderr) == (1, "") and "config.routes.keep" in other.stdout
    same = root.run("diff", first, first)
    assert same.returncode == 0 and "the same: every stage, every shard, every row" in same.stdout
    gone = root.run("diff", first, f"{root.url}@20200101T000000-000000")
    assert gone.returncode == 2 and gone.stderr.count("\n") == 1 and "there is no run" in gone.stderr


def test_diff_gives_everything_as_json(root: Root) -> None:
    done = root.run("diff", f"{root.url}@{root.first.run_id}", root.url, "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 1 and told["same"] is False
    assert [one["name"] for one in told["parameters"]] == ["keep"]
    assert told["corpus"]["only_a"] > 0 and told["corpus"]["sample_a"]


def test_neither_loads_ray_prefect_or_torch(root: Root) -> None:
    script = "; ".join(
        [
            "import sys; from flows.tracing import show_diff, show_lineage",
            f"show_lineage({root.url!r}, 'doc-2', None, True); show_diff({root.url!r}, {root.url!r}, True)",
            "print(sorted({'ray', 'prefect', 'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_document_of_a_run_of_the_flow_can_be_traced(tmp_path: Path) -> None:
    """The real flow on the demo's documents, without rephrasing: three annotations, the route, the build."""
    from prefect.testing.utilities import prefect_test_harness

    from flows.curate_text import curate_text
    from flows.demo_source import documents
    from flows.parameters import CurateText

    rows = [row for row in documents() if len(row["text"]) < 1500][:36]
    (tmp_path / "web").mkdir()
    for shard in range(3):
        pq.write_table(pa.Table.from_pylist(rows[shard::3]), tmp_path / "web" / f"web-{shard}.parquet")
    with prefect_test_harness(server_startup_timeout=120):
        asked = {"input": str(tmp_path / "web"), "output": str(tmp_path / "out"), "executor": "local"}
        summary = curate_text(CurateText(**asked, rephrase=False, synthetic_share=None, shard_tokens=2000))
    version, outcomes = open_version(summary.output), Counter[str]()
    for row in rows:
        (document,) = trace(version, row["id"]).documents
        assert document.source.values["text"] == row["text"]
        assert [step.stage for step in document.steps] == ["language", "harm_score", "tokens", "route"]
        assert all(step.models for step in document.steps[:3]), "what scored it is known by hash"
        outcomes[document.corpus.outcome] += 1
    corpus = next(one for one in summary.stages if one.name == "corpus").accounts
    assert outcomes == {"in_corpus": corpus.rows_out, "dropped": 36 - corpus.rows_out}
