"""What earlier winnows left at an output root is read, verified, traced, swept and gone on with; nothing is made anew.

Each file of tests/formats is a root as the winnow of that record format wrote it (tests/formats/write.py).
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import orjson
import pytest

from tasks import stages
from tasks.dataset import FORMAT_VERSION, HIDDEN, Folder
from tasks.garbage.find import find_garbage
from tasks.lineage.trace import trace
from tasks.records import read_records
from tasks.source import SourceColumns, open_source
from tasks.stage import Execution, Executor, run_stage
from tasks.store import Store
from tasks.summary import Status
from tasks.verify import verify
from tasks.version import open_version
from tests.toys import Judged, Words

OLD = sorted((Path(__file__).parents[1] / "formats").glob("*.tar.xz"))
STAGES = {
    *("judged", "tokens", "route", "rephrase", "rephrase_tokens", "corpus"),
    *(f"corpus-{step}-{origin}" for step in ("resolve", "scatter") for origin in ("real", "synthetic")),
}


@pytest.fixture(params=OLD, ids=[file.name.split(".")[0] for file in OLD])
def left(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """``web``, ``model`` and ``out`` as they were left; times and inodes are others, as after a copy to a new disk."""
    with tarfile.open(request.param) as packed:
        packed.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    return folder


def formats(store: Store) -> set[int]:
    kinds = ("records", "manifests")
    return {
        orjson.loads(store.read(entry.path))["format_version"]
        for kind in kinds
        for entry in store.entries(f"{HIDDEN}/{kind}")
    }


def test_every_older_format_has_its_root() -> None:
    assert [file.name for file in OLD] == [f"{version}.tar.xz" for version in range(1, FORMAT_VERSION)]


def test_records_manifests_and_data_of_an_older_format_are_accepted(left: Path) -> None:
    store = Store(str(left / "out"))
    assert formats(store) <= set(range(1, FORMAT_VERSION))
    found = verify(store)
    assert {stage.stage for stage in found.stages} == STAGES
    assert found.ok and found.corpus_rows == 22, found.problems
    (tokens,) = (stage for stage in found.stages if stage.stage == "tokens")
    records = read_records(store, Folder("tokens", tokens.fingerprint))
    assert {record.name: record.accounts.outcomes for record in records} == {
        "part-0.parquet": {"ok": 7, "quarantined": 1},
        "2026/part-1.parquet": {"ok": 10},
    }


def test_lineage_and_garbage_read_an_older_format(left: Path) -> None:
    store = Store(str(left / "out"))
    (document,) = trace(open_version(f"{store.url}"), "doc-2").documents
    assert (document.shard, document.ordinal) == ("part-0.parquet", 2)
    assert {step.stage for step in document.steps} >= {"judged", "tokens", "route"}
    garbage = find_garbage(store, keep=1, now=4e9)
    assert garbage.items == [] and [kept.corpus.rsplit("/", 1)[-1] for kept in garbage.kept] == ["9142a09b9fe5"]


def test_a_run_goes_on_at_a_root_of_an_older_format_and_makes_nothing_anew(
    left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def called(*arguments: object) -> None:
        raise AssertionError("an operator was called")

    store = Store(str(left / "out"))
    before = {entry.path: store.read(entry.path) for entry in store.entries() if entry.path.endswith(".parquet")}
    for operator in (Judged, Words):
        monkeypatch.setattr(operator, "__call__", called)
    source = open_source(str(left / "web"), SourceColumns())
    for name, operator in (("judged", Judged()), ("tokens", Words())):
        result = run_stage(stages.annotate(name, operator, [source], store), store, Execution(Executor.LOCAL))
        assert result.summary.status is Status.DONE and result.summary.shards_made == 0, result.summary.failures
        assert result.summary.accounts.outcomes == {"ok": 17, "quarantined": 1}
        source = source.with_contents(result.contents())
    assert {path: store.read(path) for path in before} == before
    assert formats(store) == set(range(1, FORMAT_VERSION + 1)), "what is new is written as of today"
    assert verify(store).ok
