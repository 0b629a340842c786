"""A disk that fills up in the middle of a run, really full: what is committed stands, and the same command goes on."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.base import Annotator, execution
from tasks.records import read_records
from tasks.store import Store, StoreError
from tasks.summary import RunSummary, Status
from tasks.verify import _folders, verify
from tests.bad_input import chain, packed, put
from tests.full_disk import empty, fill, full_disk
from tests.small_job import rows_of
from tests.toys import Judged, Words

SHARDS, ROWS = 4, 40
ROUTES = (("keep", "tokens >= 1"),)


class Filling(Annotator):
    """Fills the disk ``disk`` once it sees the text ``where``, as another process might."""

    version: ClassVar[str] = "1"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    adds: ClassVar[pa.Schema] = pa.schema([("length", pa.int64())])

    where: str
    disk: str = execution("")
    free: int = execution(0)

    def __call__(self, table: pa.Table) -> pa.Table:
        texts = table.column("text").to_pylist()
        if self.disk and any(self.where in text for text in texts):
            fill(Path(self.disk), self.free)
        return pa.table({"length": [len(text) for text in texts]})


def noise(shard: int, row: int) -> str:
    """Text that no compression makes small."""
    drawn = hashlib.shake_128(f"{shard} {row}".encode()).hexdigest(400)
    return f"Shard {shard} row {row} " + " ".join(drawn[at : at + 7] for at in range(0, 800, 7))


def write(root: str) -> None:
    for shard in range(SHARDS):
        texts = [noise(shard, row) for row in range(ROWS)]
        put(Store(root), f"part-{shard}.parquet", packed({"id": [f"{shard}-{n}" for n in range(ROWS)], "text": texts}))


def run(web: str, out: str, where: str, disk: str = "", free: int = 0) -> RunSummary:
    operators = {"filling": Filling(where=where, disk=disk, free=free), "judged": Judged(), "tokens": Words()}
    return chain(web, out, annotators=operators, routes=ROUTES, workers=1)


def files(out: str) -> dict[str, str]:
    store = Store(out)
    skip = (
        ".winnow/records",
        ".winnow/runs",
        ".winnow/reports",
        ".winnow/cards",
        ".winnow/running",
        ".winnow/manifests",
    )
    return {
        entry.path: hashlib.sha256(store.read(entry.path)).hexdigest()
        for entry in store.entries()
        if not entry.path.startswith(skip)
    }


def ended_by_a_full_disk(web: str, out: str, where: str, disk: Path, free: int) -> str:
    """The line with which a run ends on the disk that it fills: an error, or a summary with failed shards."""
    try:
        summary = run(web, out, where, str(disk), free)
    except StoreError as error:
        return str(error)
    assert summary.status is Status.FAILED
    return "; ".join(summary.messages)


def check_standing(out: str) -> None:
    """Everything that has a record is whole."""
    store = Store(out)
    for folder in _folders(store):
        for record in read_records(store, folder):
            assert hashlib.sha256(store.read(record.path)).hexdigest() == record.sha256
            assert len(rows_of(store, record.path)) == record.rows


# the shard, and the place in the run, at which the disk is full; bytes that are left
SLOW = pytest.mark.slow
MOMENTS = [
    pytest.param("Shard 0 row 0 ", 0, marks=SLOW),
    ("Shard 2 row 39 ", 0),
    pytest.param("Shard 3 row 0 ", 9000, marks=SLOW),
    pytest.param("Shard 3 row 0 ", 60_000, marks=SLOW),
]


@pytest.mark.parametrize(("where", "free"), MOMENTS)
def test_a_full_output_disk_ends_the_run_and_the_same_command_goes_on(tmp_path: Path, where: str, free: int) -> None:
    web = str(tmp_path / "web")
    write(web)
    run(web, str(tmp_path / "undisturbed"), where)
    with full_disk(tmp_path / "disk", 8 << 20, free=7 << 20) as disk:
        out = str(disk / "out")
        line = ended_by_a_full_disk(web, out, where, disk, free)
        assert "no space left; free some and run the same command again" in line and "\n" not in line
        check_standing(out)
        empty(disk)
        summary = run(web, out, where)
        assert summary.status is Status.DONE, summary.messages
        assert verify(Store(out)).ok
        left = [path for path in files(out) if path.startswith(".winnow/tmp/")]
        assert not left, "a temporary file stays behind"
        assert files(out) == files(str(tmp_path / "undisturbed"))


def test_a_full_temporary_folder_ends_a_run_from_bucket_to_bucket(
    tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"{s3}/{tmp_path.name}"
    write(f"{root}/web")
    run(f"{root}/web", f"{root}/undisturbed", "Shard 2 row 0 ")
    with full_disk(tmp_path / "disk", 8 << 20, free=7 << 20) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))  # as TMPDIR would have it
        line = ended_by_a_full_disk(f"{root}/web", f"{root}/out", "Shard 2 row 0 ", disk, 0)
        assert line.count(f"{disk}: no space left for temporary files; free some and run the same command again") == 1
        assert "TMPDIR" in line and "\n" not in line, "it is not the bucket that is full"
        empty(disk)
        check_standing(f"{root}/out")
        assert os.listdir(disk) == []
        summary = run(f"{root}/web", f"{root}/out", "Shard 2 row 0 ")
    assert summary.status is Status.DONE, summary.messages
    assert verify(Store(f"{root}/out")).ok
    assert files(f"{root}/out") == files(f"{root}/undisturbed")


def test_a_shard_larger_than_what_is_left_is_not_taken_for_one_that_is_there(tmp_path: Path) -> None:
    """Link and PUT come after the last byte: a name never stands for half a file."""
    with full_disk(tmp_path / "disk", 4 << 20, free=100_000) as disk:
        from tasks.commit import Footer, commit_table
        from tasks.summary import Accounts

        big = pa.table({"text": [noise(0, row) for row in range(400)]})
        footer = Footer(stage="s", fingerprint="f", name="n", key="k", accounts=Accounts())
        with pytest.raises(StoreError, match="no space left"):
            commit_table(Store(str(disk / "out")), "s/f/n.parquet", big, footer)
        assert [file for file in (disk / "out").rglob("*") if file.is_file()] == []
        empty(disk)
        commit_table(Store(str(disk / "out")), "s/f/n.parquet", big, footer)
        assert pq.read_table(disk / "out/s/f/n.parquet").num_rows == 400
