"""``verify`` accepts a good run and finds what is wrong with a bad one, on a local folder and on S3."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.route import Route
from tasks import stages
from tasks.commit import FOOTER
from tasks.dataset import HIDDEN, Folder
from tasks.records import Manifest, Record, read_manifest
from tasks.runs import save_run
from tasks.source import SourceColumns, open_source
from tasks.stage import Execution, Executor, StageResult, run_stage
from tasks.store import Store, StoreError
from tasks.summary import RunSummary, Status
from tasks.verify import Verification, verify
from tests.toys import Length, Picky, documents

LOCAL = Execution(executor=Executor.LOCAL)
RUN = "20260101T000000-abcdef"


def good_run(web: Path, root: str, status: Status = Status.DONE) -> list[StageResult]:
    """length -> picky (with two quarantined rows) -> route, and the summary of the run."""
    table = documents(10)
    texts = table.column("text").to_pylist()
    texts[2], texts[4] = "POISON here", "REFUSE this"
    pq.write_table(table.set_column(1, "text", pa.array(texts)), web / "part-0.parquet")
    store = Store(root)
    source = open_source(str(web), SourceColumns())
    length = run_stage(stages.annotate("length", Length(), [source], store), store, LOCAL)
    source = source.with_contents(length.contents())
    picky = run_stage(stages.annotate("picky", Picky(), [source], store), store, LOCAL)
    route = Route(routes=(("keep", "fine AND length > 0"),))
    routed = run_stage(stages.annotate("route", route, [length.dataset, picky.dataset], store), store, LOCAL)
    results = [length, picky, routed]
    summary = RunSummary(
        run_id=RUN, flow="toy", status=status, started="2026-01-01T00:00:00", seconds=1.0, input=str(web), output=root,
        stages=[result.summary for result in results], messages=["one line"] * (status is not Status.DONE),
    )  # fmt: skip
    save_run(store, summary)
    return results


def put(store: Store, path: str, data: bytes) -> None:
    target = store.absolute(path)
    store.fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
    store.fs.pipe_file(target, data)


def problems(found: Verification) -> list[str]:
    return [*found.problems, *(line for stage in found.stages for line in stage.problems)]


def the_one_problem(root: str) -> str:
    found = verify(Store(root))
    assert not found.ok
    (line,) = problems(found)
    assert "\n" not in line
    return line


@pytest.fixture
def picky(web: Path, root: str) -> StageResult:
    return good_run(web, root)[1]


def test_a_good_run_is_accepted_and_left_as_it_is(web: Path, root: str) -> None:
    results = good_run(web, root)
    store = Store(root)
    before = store.entries()
    found = verify(store)
    assert found.ok and problems(found) == []
    assert [(stage.stage, stage.shards, stage.rows) for stage in found.stages] == [
        ("length", 3, 30),
        ("picky", 3, 30),
        ("route", 3, 30),
    ]
    assert {stage.fingerprint for stage in found.stages} == {result.summary.fingerprint for result in results}
    assert store.entries() == before


def manifest_at(store: Store, path: str) -> Manifest:
    _, _, stage, mark, file = path.split("/")
    found = read_manifest(store, Folder(stage, mark), file.removesuffix(".json"))
    assert found is not None
    return found


def test_records_that_are_not_compacted_yet_count_too(web: Path, root: str) -> None:
    good_run(web, root)
    store = Store(root)
    for entry in store.entries(f"{HIDDEN}/manifests"):
        manifest = manifest_at(store, entry.path)
        for number, record in enumerate(manifest.records):
            path = entry.path.replace("manifests", "records").replace(".json", f"-{number}.json")
            put(store, path, orjson.dumps(record.model_dump()))
        store.fs.rm_file(store.absolute(entry.path))
    found = verify(store)
    assert found.ok and [stage.rows for stage in found.stages] == [30, 30, 30]


def test_nothing_there_is_one_line(root: str) -> None:
    with pytest.raises(StoreError, match="holds no winnow run; give the --output of one"):
        verify(Store(root))


def test_stages_without_an_ended_run(web: Path, root: str) -> None:
    good_run(web, root)
    store = Store(root)
    store.fs.rm_file(store.absolute(f"{HIDDEN}/runs/{RUN}.json"))
    assert "no run has ended here yet" in the_one_problem(root)


def test_a_run_that_did_not_end_well(web: Path, root: str) -> None:
    good_run(web, root, Status.FAILED)
    assert the_one_problem(root) == "the last run ended failed: one line"


def test_an_unreadable_summary_of_a_run_is_one_line(web: Path, root: str) -> None:
    good_run(web, root)
    put(Store(root), f"{HIDDEN}/runs/{RUN}.json", b'{"half": ')
    with pytest.raises(StoreError, match="not a readable summary of a run; remove it"):
        verify(Store(root))


def test_a_deleted_file(picky: StageResult, root: str) -> None:
    store, path = Store(root), picky.dataset.shards[1].path
    store.fs.rm_file(store.absolute(path))
    assert the_one_problem(root) == f"{path}: is gone; run the same command again to make it anew"


@pytest.mark.parametrize("place", [4, 0.3, 0.6, -9])
def test_a_flipped_byte(picky: StageResult, root: str, place: float) -> None:
    store, path = Store(root), picky.dataset.shards[2].path
    raw = bytearray(store.read(path))
    raw[int(place * len(raw)) if isinstance(place, float) else place] ^= 1
    put(store, path, bytes(raw))
    line = the_one_problem(root)
    assert line.startswith(f"{path}: checksum ") and "is not the recorded" in line


def test_a_file_that_is_cut_off(picky: StageResult, root: str) -> None:
    store, path = Store(root), picky.dataset.shards[2].path
    put(store, path, store.read(path)[:-100])
    assert the_one_problem(root).startswith(f"{path}: checksum ")


def test_stray_files_in_a_stage_folder(picky: StageResult, root: str) -> None:
    store, folder = Store(root), picky.summary.folder
    put(store, f"{folder}/_SUCCESS", b"")
    buffer = pa.BufferOutputStream()
    pq.write_table(documents(1), buffer)
    put(store, f"{folder}/stray.parquet", buffer.getvalue().to_pybytes())
    lines = problems(verify(store))
    assert len(lines) == 2 and not verify(store).ok
    assert lines[0].startswith(f"{folder}/_SUCCESS: not a Parquet file")
    assert lines[1].startswith(f"{folder}/stray.parquet: has no record")


def rewritten(store: Store, stage: str, change: Callable[[Record], Any]) -> None:
    """Changes the second record in the manifest of a stage."""
    (entry,) = store.entries(f"{HIDDEN}/manifests/{stage}")
    manifest = manifest_at(store, entry.path)
    change(manifest.records[1])  # one without quarantine
    put(store, entry.path, manifest.dumped())


def lying_accounts(record: Record) -> None:
    record.accounts.outcomes["ok"] += 1
    record.accounts.rows_in += 1


LIES: dict[str, Callable[[Record], Any]] = {
    "accounts": lying_accounts,
    "key": lambda record: setattr(record, "key", "0" * 64),
    "checksum": lambda record: setattr(record, "sha256", "0" * 64),
    "rows": lambda record: setattr(record, "rows", 11),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_record_that_lies(picky: StageResult, root: str, lie: str) -> None:
    rewritten(Store(root), "picky", LIES[lie])
    assert the_one_problem(root).startswith(picky.dataset.shards[1].path)


def test_accounts_that_lie_in_footer_and_record_alike(picky: StageResult, root: str) -> None:
    """Whoever changes both is found by counting the rows themselves."""
    store, path = Store(root), picky.dataset.shards[1].path
    with store.fetched(path) as (local, _):
        table = pq.read_table(local)
    footer = orjson.loads(table.schema.metadata[FOOTER])
    footer["accounts"]["outcomes"] = footer["accounts"]["outputs"] = {"ok": 9, "quarantined": 1}
    buffer = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({FOOTER: orjson.dumps(footer)}), buffer)
    raw = buffer.getvalue().to_pybytes()
    put(store, path, raw)

    import hashlib

    def change(record: Record) -> None:
        record.sha256, record.bytes = hashlib.sha256(raw).hexdigest(), len(raw)
        record.accounts = record.accounts.model_validate(footer["accounts"])

    (entry,) = store.entries(f"{HIDDEN}/manifests/picky")
    manifest = manifest_at(store, entry.path)
    change(next(record for record in manifest.records if record.path == path))
    put(store, entry.path, manifest.dumped())
    line = the_one_problem(root)
    assert line == f"{path}: rows by status {{'ok': 10}}, in its accounts {{'ok': 9, 'quarantined': 1}}"


def quarantine_of(store: Store) -> str:
    (entry,) = store.entries(f"{HIDDEN}/quarantine/picky")
    return entry.path


def test_missing_quarantine(picky: StageResult, root: str) -> None:
    store = Store(root)
    path = quarantine_of(store)
    store.fs.rm_file(store.absolute(path))
    assert the_one_problem(root) == f"{path}: the quarantined rows are gone"


@pytest.mark.parametrize("how", ["half", "other", "short"])
def test_damaged_quarantine(picky: StageResult, root: str, how: str) -> None:
    store = Store(root)
    path = quarantine_of(store)
    with store.fetched(path) as (local, _):
        table = pq.read_table(local)
    if how == "half":
        put(store, path, store.read(path)[:-20])
    else:
        kept = table.slice(0, 1) if how == "short" else table.replace_schema_metadata(None)
        buffer = pa.BufferOutputStream()
        pq.write_table(kept, buffer)
        put(store, path, buffer.getvalue().to_pybytes())
    line = the_one_problem(root)
    expected = {"half": "not a readable", "other": "footer does not say", "short": "1 rows, 2 were quarantined"}
    assert expected[how] in line


def test_an_unreadable_record_is_one_line(picky: StageResult, root: str) -> None:
    store = Store(root)
    (entry,) = store.entries(f"{HIDDEN}/manifests/picky")
    put(store, entry.path, b"{")
    with pytest.raises(StoreError, match="not a readable manifest .*remove it"):
        verify(store)
