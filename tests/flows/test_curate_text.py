"""The whole flow on real text with the real embedded model, on a real Prefect server and, where it says so, on real
Ray.

Runs build on each other through one output folder, as a user's do: what each one makes anew is the point.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from flows.demo_source import documents
from flows.parameters import CurateText
from operators.language.choose import resolve_kind
from operators.language.engine import EngineSettings
from operators.rephrase import wrap
from tasks.preflight import Refused
from tasks.run import RunIncomplete
from tasks.store import Store
from tasks.summary import RunSummary, Status
from tasks.verify import verify

pytestmark = pytest.mark.timeout(600)

SMALL: dict[str, Any] = {
    "executor": "local",
    "piece_tokens": 48,
    "rephrase_share": 0.15,
    "max_new_tokens": 16,
    "synthetic_share": None,
    "max_quarantine": 0.1,
    "shard_tokens": 4000,
}


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 of the demo's documents in three shards, two formats."""
    folder = tmp_path_factory.mktemp("web")
    rows = [row for row in documents() if len(row["text"]) < 1500][:36]
    for shard in range(2):
        pq.write_table(pa.Table.from_pylist(rows[shard * 12 : shard * 12 + 12]), folder / f"web-{shard}.parquet")
    (folder / "web-2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[24:]))
    return folder


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("output") / "corpus"


def curate(web: Path, output: Path, **changes: Any) -> RunSummary:
    from flows.curate_text import curate_text

    return curate_text(CurateText(input=str(web), output=str(output), **{**SMALL, **changes}))


def made(summary: RunSummary) -> dict[str, int]:
    """Shards that the run made, by stage; stages that made none are left out."""
    return {stage.name: stage.shards_made for stage in summary.stages if stage.shards_made}


def stage(summary: RunSummary, name: str) -> Any:
    return next(one for one in summary.stages if one.name == name)


def parquet_bytes(output: Path) -> dict[str, str]:
    return {
        str(file.relative_to(output)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(output.rglob("*.parquet"))
        if "ledger" not in file.parts  # its blocks are cut by time, and are no output
    }


def test_a_corpus_is_made_and_verified(server: None, web: Path, output: Path) -> None:
    summary = curate(web, output)
    assert summary.status is Status.DONE and summary.work_done
    assert sum(summary.routes.values()) == 36
    rephrase = stage(summary, "rephrase")
    assert rephrase.notes["generated"] > 0
    assert all(one.accounts.closed() for one in summary.stages)
    verification = verify(Store(str(output)))
    assert verification.ok, verification
    assert verification.corpus_rows == stage(summary, "corpus").accounts.rows_out > 0
    assert (
        Path(summary.report).read_text().startswith("<!doctype html>".upper())
        or "<html" in Path(summary.report).read_text()[:200]
    )
    card = next((output / ".winnow" / "cards").glob("*.md")).read_text()
    assert card.startswith("---\n") and summary.input in card


def test_many_shards_are_few_task_runs(server: None, web: Path, tmp_path: Path) -> None:
    """Thousands of mapped task runs unsettle a Prefect server: a task is a stage, however many shards it has."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import FlowRunSort

    (tmp_path / "many").mkdir()
    rows = pq.read_table(web / "web-0.parquet")
    for shard in range(40):
        pq.write_table(rows.slice(shard % rows.num_rows, 1), tmp_path / "many" / f"web-{shard}.parquet")
    summary = curate(tmp_path / "many", tmp_path / "out", rephrase=False)
    assert summary.stages[0].shards_made == 40
    with get_client(sync_client=True) as client:
        (last,) = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
        found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[last.id])))
    assert sorted(one.name for one in found) == sorted(one.name for one in summary.stages)


def test_a_second_run_does_no_work_and_says_so(server: None, web: Path, output: Path) -> None:
    before = parquet_bytes(output)
    summary = curate(web, output)
    assert made(summary) == {} and not summary.work_done
    assert parquet_bytes(output) == before
    assert "no work" in Path(summary.report).read_text()


def test_a_changed_threshold_makes_what_depends_on_it_and_generates_nothing(
    server: None, web: Path, output: Path
) -> None:
    # fewer documents are kept: everything that is still wanted was generated before
    summary = curate(web, output, keep="lang = 'en' AND harm_score = 0 AND tokens > 60")
    changed = made(summary)
    assert {"language", "harm_score", "tokens"}.isdisjoint(changed)
    assert {"route", "rephrase", "corpus"} <= set(changed)
    assert changed["route"] == changed["rephrase"] == 3
    rephrase = stage(summary, "rephrase")
    assert rephrase.notes["generated"] == 0 and rephrase.notes["requests"] > 0


def test_a_changed_prompt_makes_rephrasing_and_corpus_alone(
    server: None, web: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, prompt = wrap.template, wrap.prompt
    monkeypatch.setattr(wrap, "template", lambda style: template(style) + " Be brief.")
    monkeypatch.setattr(wrap, "prompt", lambda style, piece: prompt(style, piece) + " Be brief.")
    summary = curate(web, output, rephrase_share=0.05)
    changed = set(made(summary))
    assert "rephrase" in changed and "corpus" in changed
    assert changed <= {"rephrase", "rephrase_tokens", "corpus"} | {one for one in changed if one.startswith("corpus-")}
    assert stage(summary, "rephrase").notes["generated"] == stage(summary, "rephrase").notes["requests"] > 0


def test_a_changed_tag_route_leaves_models_alone(server: None, web: Path, output: Path) -> None:
    summary = curate(web, output, tag="lang = 'en' AND harm_score >= 3")
    assert {"language", "harm_score", "tokens"}.isdisjoint(made(summary))
    assert stage(summary, "rephrase").notes["generated"] == 0
    corpus = pl.read_parquet(f"{summary.corpus}/*.parquet")
    tagged = corpus.filter(pl.col("tagged"))
    assert len(tagged) == summary.routes.get("tag", 0) > 0
    assert set(tagged["route"]) == {"tag"}


def test_one_added_shard_makes_exactly_that_shard(server: None, web: Path, output: Path) -> None:
    rows = [{"id": f"new-{row}", "text": f"A new document, number {row}, about harbours."} for row in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), web / "web-9.parquet")
    try:
        changed = made(curate(web, output))
    finally:
        (web / "web-9.parquet").unlink()
    assert {name: count for name, count in changed.items() if not name.startswith("corpus")} == dict.fromkeys(
        ("language", "harm_score", "tokens", "route", "rephrase", "rephrase_tokens"), 1
    )


@pytest.mark.skipif(resolve_kind(EngineSettings()) != "vllm", reason="the batch-invariant set-up is vLLM in float32")
def test_ray_and_worker_count_change_no_byte(
    server: None, web: Path, output: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    curate(web, one)
    summary = curate(web, two, executor="ray", workers=2, engine_threads=1)
    assert stage(summary, "rephrase").workers == 2
    first, second = parquet_bytes(one), parquet_bytes(two)
    assert first == second and len(first) > 20
    read_by_everyone(two, summary)


def read_by_everyone(output: Path, summary: RunSummary) -> None:
    """pandas, Polars, pyarrow.dataset and Ray Data read every folder without knowing winnow."""
    import ray

    folders = {one.folder for one in summary.stages if not one.folder.startswith(".winnow")}
    assert len(folders) >= 6
    script = [
        "import json, os, ray",
        "os.environ['RAY_USAGE_STATS_ENABLED'] = '0'",
        "own = {'include_dashboard': False, '_node_ip_address': '127.0.0.1', 'log_to_driver': False}",
        "ray.init(address='local', num_cpus=1, **own)",  # and not one that another test left word of
        f"folders = {sorted(folders)!r}",
        f"print(json.dumps({{f: ray.data.read_parquet({str(output)!r} + '/' + f).count() for f in folders}}))",
    ]
    environment = {**os.environ, "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(script)], capture_output=True, text=True, timeout=180, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    by_ray = json.loads(done.stdout.splitlines()[-1])
    assert not ray.is_initialized()
    for folder in folders:
        place = str(output / folder)
        rows = ds.dataset(place, format="parquet").count_rows()
        assert rows > 0
        assert len(pd.read_parquet(place)) == len(pl.read_parquet(place)) == by_ray[folder] == rows


def test_a_run_with_something_open_never_says_success(server: None, web: Path, tmp_path: Path) -> None:
    (web / "zz-broken.parquet").write_bytes(b"PAR1 this is no Parquet file PAR1")
    try:
        with pytest.raises(RunIncomplete) as ended:
            curate(web, tmp_path / "out", rephrase=False)
    finally:
        (web / "zz-broken.parquet").unlink()
    summary = ended.value.summary
    assert summary.status is Status.FAILED
    assert any("zz-broken.parquet" in message for message in summary.messages)
    assert stage(summary, "language").shards_made == 3
    mended = curate(web, tmp_path / "out", rephrase=False)
    assert mended.status is Status.DONE
    assert "language" not in made(mended)


def test_quarantine_above_the_limit_is_no_success(server: None, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(
        pa.table({"text": ["A fine text about boats.", None, "Another text about trains."]}), folder / "a.parquet"
    )
    with pytest.raises(RunIncomplete, match="1 of 3 rows quarantined"):
        curate(folder, tmp_path / "out", rephrase=False, max_quarantine=0.1)
    assert curate(folder, tmp_path / "out", rephrase=False, max_quarantine=0.5).status is Status.DONE


def test_limit_takes_the_first_documents(server: None, web: Path, tmp_path: Path) -> None:
    summary = curate(web, tmp_path / "out", rephrase=False, limit=15)
    assert stage(summary, "language").accounts.rows_in == 15
    everything = curate(web, tmp_path / "out", rephrase=False)
    assert stage(everything, "language").accounts.rows_in == 36
    folders = [tmp_path / "out" / stage(one, "language").folder for one in (summary, everything)]
    assert [len(pl.read_parquet(folder)) for folder in folders] == [15, 36]


@pytest.mark.parametrize(
    ("keep", "says"), [("quality > 1", "no column 'quality'"), ("harm_score + 1", "no yes or no"), ("x >", "SQL")]
)
def test_a_wrong_condition_is_refused_before_anything_runs(web: Path, tmp_path: Path, keep: str, says: str) -> None:
    from flows.curate_text import prepare

    with pytest.raises(Refused, match=says) as refused:
        prepare(CurateText(input=str(web), output=str(tmp_path / "out"), keep=keep, rephrase=False))
    assert "\n" not in str(refused.value)


def test_a_backfill_makes_its_shards_and_the_full_run_only_the_others(server: None, web: Path, tmp_path: Path) -> None:
    stages = ("language", "harm_score", "tokens", "route")
    backfill = curate(web, tmp_path / "out", rephrase=False, shards=["web-1.*"], build=False)
    assert backfill.status is Status.DONE and made(backfill) == dict.fromkeys(stages, 1)
    assert backfill.corpus == "" and not (tmp_path / "out" / "corpus").exists()
    assert backfill.messages == [
        "backfill: 1 of 3 input shards chosen",
        "no corpus was built, as asked (build is off); a run with build on finds these stages finished",
    ]
    assert sum(backfill.routes.values()) == 12
    report = Path(backfill.report).read_text()
    assert "No corpus was made" in report and "1 of 3 input shards chosen" in report
    verification = verify(Store(str(tmp_path / "out")))
    assert verification.ok and verification.corpus == "", verification
    written = parquet_bytes(tmp_path / "out")

    nightly = curate(web, tmp_path / "out", rephrase=False)
    assert {name: count for name, count in made(nightly).items() if name in stages} == dict.fromkeys(stages, 2)
    assert all(stage(nightly, name).shards_before == 1 for name in stages)
    assert [stage(nightly, name).folder for name in stages] == [stage(backfill, name).folder for name in stages]
    assert nightly.corpus and sum(nightly.routes.values()) == 36
    assert parquet_bytes(tmp_path / "out").items() >= written.items()
    again = curate(web, tmp_path / "out", rephrase=False, shards=["web-1.*"], build=False)
    assert made(again) == {} and not again.work_done


def test_a_backfill_of_nothing_is_refused_in_one_line(web: Path, tmp_path: Path) -> None:
    from flows.curate_text import prepare

    for chosen, says in (
        ({"shards": ("nope*",)}, r"no shard matches nope\*; it has web-0.parquet, web-1.parquet, web-2.jsonl$"),
        ({"first_date": "2026-03-14"}, "no shard's path holds a date .*; it has web-0.parquet.* Choose by --shards$"),
    ):
        with pytest.raises(Refused, match=says) as refused:
            prepare(CurateText(input=str(web), output=str(tmp_path / "out"), rephrase=False, **chosen))
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "out" / "language").exists()
