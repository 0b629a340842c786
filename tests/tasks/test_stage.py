"""The contract of a stage, on a local folder and on S3, in process; test_ray.py repeats its heart on Ray."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import stages
from tasks.dataset import HIDDEN, Dataset
from tasks.executor import Policy, SetupFailed
from tasks.source import SourceColumns, open_source
from tasks.stage import Bounds, Execution, Executor, StageResult, run_stage
from tasks.store import Store
from tasks.summary import Status
from tests.toys import Length, Picky, Stuck, documents

LOCAL = Execution(executor=Executor.LOCAL)


def source(folder: Path) -> Dataset:
    return open_source(str(folder), SourceColumns())


def run(operator: Any, web: Path, root: str, execution: Execution = LOCAL, **kwargs: Any) -> StageResult:
    store = Store(root)
    return run_stage(stages.annotate("toy", operator, [source(web)], store), store, execution, **kwargs)


def tables(result: StageResult) -> dict[str, pa.Table]:
    found = {}
    for shard in result.dataset.shards:
        with result.dataset.store.fetched(shard.path) as (local, _):
            found[shard.name] = pq.read_table(local)
    return found


def test_every_row_comes_out_in_order_and_the_accounts_close(web: Path, root: str) -> None:
    result = run(Length(), web, root)
    assert result.summary.status is Status.DONE
    assert result.summary.accounts.rows_in == 30 and result.summary.accounts.closed()
    for name, table in tables(result).items():
        given = pq.read_table(web / name)
        assert table.column("id").to_pylist() == given.column("id").to_pylist()
        assert table.column("length").to_pylist() == [len(text) for text in given.column("text").to_pylist()]
        assert set(table.column("status").to_pylist()) == {"ok"}


def test_a_second_run_does_nothing(web: Path, root: str) -> None:
    first = run(Length(), web, root)
    again = run(Length(), web, root)
    assert (first.summary.shards_made, first.summary.shards_before) == (3, 0)
    assert (again.summary.shards_made, again.summary.shards_before) == (0, 3)
    assert again.dataset.version == first.dataset.version == again.summary.dataset_version


def test_an_added_shard_makes_that_shard_and_a_changed_one_makes_that_one(web: Path, root: str) -> None:
    run(Length(), web, root)
    pq.write_table(documents(5, 100), web / "part-9.parquet")
    added = run(Length(), web, root)
    assert [added.summary.shards_made, added.summary.shards_before] == [1, 3]
    pq.write_table(documents(7, 200), web / "part-1.parquet")
    changed = run(Length(), web, root)
    assert [changed.summary.shards_made, changed.summary.shards_before] == [1, 3]
    assert changed.summary.accounts.rows_in == 10 + 7 + 10 + 5


def test_a_touched_shard_is_hashed_again_and_its_data_adopted(web: Path, root: str) -> None:
    first = run(Length(), web, root)
    table = pq.read_table(web / "part-1.parquet")
    (web / "part-1.parquet").unlink()
    pq.write_table(table, web / "part-1.parquet")
    touched = run(Length(), web, root)
    assert touched.summary.notes["shards adopted"] == 1
    assert touched.dataset.version == first.dataset.version
    assert run(Length(), web, root).summary.shards_made == 0


def test_a_changed_config_makes_everything_anew_in_its_own_folder(web: Path, root: str) -> None:
    first, other = run(Length(), web, root), run(Length(offset=1), web, root)
    assert other.summary.shards_made == 3
    assert first.summary.folder != other.summary.folder
    assert run(Length(), web, root).summary.shards_made == 0


def test_execution_is_no_part_of_identity_and_workers_change_no_byte(web: Path, root: str) -> None:
    one = run(Length(), web, f"{root}/one")
    many = run(Length(slow=0.01, batch_size=3), web, f"{root}/many", Execution(Executor.LOCAL, workers=3))
    assert one.summary.fingerprint == many.summary.fingerprint
    assert [shard.content for shard in one.dataset.shards] == [shard.content for shard in many.dataset.shards]


def test_poison_and_refused_rows_keep_their_place_and_their_bytes_stand_in_quarantine(web: Path, root: str) -> None:
    table = documents(10)
    texts = table.column("text").to_pylist()
    texts[3], texts[5], texts[7] = "POISON here", "REFUSE this", None
    pq.write_table(table.set_column(1, "text", pa.array(texts)), web / "part-0.parquet")
    result = run(Picky(), web, root)
    accounts = result.summary.accounts
    assert accounts.outcomes == {"ok": 27, "quarantined": 3} and accounts.closed()
    rows = tables(result)["part-0.parquet"].to_pylist()
    assert [row["status"] for row in rows].count("quarantined") == 3
    assert rows[3]["reason"] == "ValueError: cannot stomach POISON" and rows[3]["fine"] is None
    assert rows[5]["reason"] == "holds REFUSE"
    assert rows[7]["reason"] == "text is null"
    store = Store(root)
    (path,) = [entry.path for entry in store.entries(f"{HIDDEN}/quarantine")]
    with store.fetched(path) as (local, _):
        kept = pq.read_table(local).to_pylist()
    assert [(row["ordinal"], row["id"]) for row in kept] == [(3, "doc-3"), (5, "doc-5"), (7, "doc-7")]
    assert orjson.loads(kept[0]["row"])["text"] == "POISON here"


def test_rows_that_all_fail_are_no_rows_fault(web: Path, root: str) -> None:
    result = run(Picky(poison="Document"), web, root)
    assert result.summary.status is Status.FAILED
    assert len(result.summary.failures) == 3
    assert "cannot stomach" in result.summary.failures[0].error
    assert result.summary.failures[0].attempts == 3
    assert not Store(root).entries(result.summary.folder)


def test_a_corrupt_shard_fails_alone_and_is_made_once_it_is_mended(web: Path, root: str) -> None:
    good = (web / "part-1.parquet").read_bytes()
    (web / "part-1.parquet").write_bytes(good[: len(good) // 2])
    broken = run(Length(), web, root)
    assert broken.summary.status is Status.FAILED
    assert [failure.shard for failure in broken.summary.failures] == ["part-1.parquet"]
    assert broken.summary.shards_made == 2
    (web / "part-1.parquet").write_bytes(good)
    mended = run(Length(), web, root)
    assert (mended.summary.shards_made, mended.summary.shards_before) == (1, 2)
    assert mended.summary.status is Status.DONE


def test_data_without_its_record_is_adopted_and_a_lost_file_made_again(web: Path, root: str) -> None:
    first = run(Length(), web, root)
    store = Store(root)
    for entry in [*store.entries(f"{HIDDEN}/records"), *store.entries(f"{HIDDEN}/manifests")]:
        store.fs.rm_file(store.absolute(entry.path))
    adopted = run(Length(), web, root)
    assert adopted.summary.notes["shards adopted"] == 3
    store.fs.rm_file(store.absolute(first.dataset.shards[0].path))
    again = run(Length(), web, root)
    assert (again.summary.shards_made, again.summary.shards_before) == (1, 2)
    assert again.dataset.shards[0].content == first.dataset.shards[0].content


def test_something_else_under_a_shards_name_is_never_overwritten(web: Path, root: str) -> None:
    first = run(Length(), web, f"{root}/a")
    path = first.dataset.shards[0].path
    store = Store(f"{root}/b")
    stranger = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1]}), stranger)
    target = store.absolute(path)
    store.fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
    store.fs.pipe_file(target, stranger.getvalue().to_pybytes())
    result = run(Length(), web, f"{root}/b")
    assert result.summary.status is Status.FAILED
    assert "holds something else" in result.summary.failures[0].error
    assert store.read(path) == stranger.getvalue().to_pybytes()


def test_a_stuck_worker_is_given_up_and_the_run_ends_honestly(web: Path, root: str, tmp_path: Path) -> None:
    release = tmp_path / "release"
    policy = Policy(retries=1, stall_seconds=1.0)
    began = time.monotonic()
    try:
        stuck = Stuck(where="Document 10 ", release=str(release))
        result = run(stuck, web, root, Execution(Executor.LOCAL, policy=policy))
    finally:
        release.touch()
    assert time.monotonic() - began < 30
    assert result.summary.shards_made == 2
    (failure,) = result.summary.failures
    assert failure.shard == "part-1.parquet" and "no progress" in failure.error and failure.attempts == 2


def test_a_stop_drains_and_the_next_run_goes_on(web: Path, root: str) -> None:
    bounds = Bounds()
    seen: list[int] = []

    def on_progress(progress: Any) -> None:
        seen.append(progress.done)
        if len(seen) > 1:
            bounds.stop("enough")

    result = run(Length(slow=1.5), web, root, bounds=bounds, on_progress=on_progress)
    assert result.summary.status is Status.BOUNDED
    assert 1 <= result.summary.shards_made < 3
    rest = run(Length(), web, root)
    assert rest.summary.shards_made == 3 - result.summary.shards_made
    assert rest.summary.status is Status.DONE


class Broken(Length):
    def setup(self, models: Any) -> None:
        raise ValueError("the model is missing")


def test_a_set_up_that_cannot_work_ends_the_run_at_once(web: Path, root: str) -> None:
    with pytest.raises(SetupFailed, match="the model is missing"):
        run(Broken(), web, root)


def test_wrong_columns_from_an_operator_fail_the_shard(web: Path, root: str) -> None:
    class Wrong(Length):
        def __call__(self, table: pa.Table) -> pa.Table:
            return pa.table({"length": ["x"] * table.num_rows})

    # a class made inside a function cannot travel: said at once, not on the cluster
    with pytest.raises(Exception, match="(?i)pickle|local object"):
        run(Wrong(), web, root)


def test_jsonl_and_parquet_mix_and_bad_lines_are_quarantined(tmp_path: Path, root: str) -> None:
    import gzip

    folder = tmp_path / "mixed"
    folder.mkdir()
    pq.write_table(documents(4), folder / "a.parquet")
    lines = [
        b'{"id": "x", "text": "fine"}',
        b"{broken",
        b'{"text": 7}',
        b'{"text": ""}',
        b'{"text": "no id"}',
        b"\xff\xfe",
    ]
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines)))
    result = run(Length(), folder, root)
    rows = tables(result)["b.jsonl.gz"].to_pylist()
    assert [row["status"] for row in rows] == ["ok", *["quarantined"] * 3, "ok", "quarantined"]
    assert rows[0]["id"] == "x" and len(rows[4]["id"]) == 32
    assert [row["reason"] for row in rows][2:4] == ["text is int, not a string", "text is empty"]
    assert result.summary.accounts.closed()


def test_another_column_mapping_is_another_dataset(tmp_path: Path, root: str) -> None:
    folder = tmp_path / "two"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["short"], "body": ["quite a bit longer"]}), folder / "a.parquet")
    store = Store(root)

    def lengths(mapping: tuple[tuple[str, str], ...]) -> tuple[list[int], int]:
        dataset = open_source(str(folder), SourceColumns(mapping=mapping))
        result = run_stage(stages.annotate("toy", Length(), [dataset], store), store, LOCAL)
        return tables(result)["a.parquet"].column("length").to_pylist(), result.summary.shards_made

    assert lengths(()) == ([5], 1)
    assert lengths((("text", "body"),)) == ([18], 1)
    assert lengths((("text", "body"),)) == ([18], 0)
    assert lengths(()) == ([5], 0)
    assert len(store.folders("toy")) == 2, "a folder would hold the rows of two readings"


class Flaky(Picky):
    """Its first call in a process refuses one row, every later one another: what a second attempt may come to."""

    def __call__(self, table: pa.Table) -> pa.Table:
        texts = table.column("text").to_pylist()
        global _calls
        _calls += 1
        reasons = ["first" if _calls == 1 and row == 0 else "later" if row == 1 else None for row in range(len(texts))]
        return pa.table({"fine": pa.array([True] * len(texts)), "reason": pa.array(reasons, pa.string())})


_calls = 0


def test_a_quarantine_left_by_a_cut_off_attempt_is_not_taken_for_the_next_ones(web: Path, root: str) -> None:
    global _calls
    _calls = 0
    for name in ("part-1.parquet", "part-2.parquet"):
        (web / name).unlink()
    first = run(Flaky(), web, root)
    store = Store(root)
    # as if the first attempt had been killed between its quarantine and its data
    for entry in store.entries():
        if "quarantine" not in entry.path:
            store.fs.rm_file(store.absolute(entry.path))
    second = run(Flaky(), web, root)
    assert (first.summary.accounts.quarantined, second.summary.accounts.quarantined) == (2, 1)
    (record,) = second.records.values()
    with store.fetched(record.quarantine) as (local, _):
        assert pq.read_table(local).column("ordinal").to_pylist() == [1]


def test_no_lock_is_ever_asked_for(web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that waits for a lock hangs on NFS, where no server may be there to give one."""
    import fcntl

    def asked(*arguments: object) -> None:
        raise OSError(37, "No locks available")

    for name in ("flock", "lockf", "fcntl"):
        monkeypatch.setattr(fcntl, name, asked)
    result = run(Length(), web, str(tmp_path / "out"))
    assert result.summary.status is Status.DONE and result.summary.shards_made == 3
