"""Which rows two corpora share: an exact join in bounded memory.

Corpora that were placed by one seed into equally many files hold an id in files of one number: these are joined pair by
pair. Any others are first split by a hash of the id into parts on local disk. Either way memory holds the ids of a few
parts and a hash of each text, and of the texts one row group a reader.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import polars as pl
import pyarrow as pa

from tasks.build import ORIGIN
from tasks.diff.facts import NAMED
from tasks.gather import partition_number
from tasks.lineage.reading import Tally, opened
from tasks.records import Record
from tasks.source import ID, TEXT
from tasks.store import Store, StoreError
from tasks.version import StageVersion, Version

PART_ROWS = 2_000_000
"""Rows of both sides in one part of a join: about 300 MB while it is joined."""
MOST_PARTS = 512
"""Files that are open at once while a side is split."""
SPILLED_BYTES = 80
"""Of local disk that a row takes while it is split, with an id of 36 characters."""
READERS = 4
TEXT_HASH = "text_hash"
SCHEMA = pa.schema([(ID, pa.large_string()), (ORIGIN, pa.large_string()), (TEXT_HASH, pa.uint64())])


@dataclass
class Joined:
    """Counts of rows; ids of some of them, the first of each file."""

    same: int = 0
    changed: int = 0
    only_a: Counter[str] = field(default_factory=Counter)
    only_b: Counter[str] = field(default_factory=Counter)
    sample_changed: list[str] = field(default_factory=list)
    sample_a: list[str] = field(default_factory=list)
    sample_b: list[str] = field(default_factory=list)
    how: str = ""
    files_read: int = 0

    def take(self, other: Joined) -> None:
        self.same += other.same
        self.changed += other.changed
        self.only_a += other.only_a
        self.only_b += other.only_b
        self.files_read += other.files_read
        for name in ("sample_changed", "sample_a", "sample_b"):
            getattr(self, name).extend(getattr(other, name)[: NAMED - len(getattr(self, name))])


def join(a: Version, b: Version, tally: Tally, part_rows: int = PART_ROWS) -> Joined:
    """Both have a corpus. Raises StoreError."""
    ours, theirs = a.gather, b.gather
    assert ours is not None and theirs is not None
    mine, other = _files(ours), _files(theirs)
    if a.seed == b.seed and len(mine) == len(other):
        return _by_place(ours.store, mine, theirs.store, other, tally)
    return _by_hash((ours.store, mine), (theirs.store, other), tally, part_rows)


def _files(stage: StageVersion) -> list[Record]:
    return sorted(stage.records.values(), key=lambda record: partition_number(record.name))


def _by_place(store_a: Store, a: Sequence[Record], store_b: Store, b: Sequence[Record], tally: Tally) -> Joined:
    def pair(files: tuple[Record, Record]) -> Joined:
        ours, theirs = files
        found = matched(_all(store_a, ours, tally), _all(store_b, theirs, tally))
        found.files_read = 2
        return found

    for store in (store_a, store_b):
        store.absolute("")  # opens the connection once, before the threads ask for it
    total = Joined(how="file by file: one seed and as many files, so an id lies in the same one of both")
    with ThreadPoolExecutor(READERS) as pool:
        for found in pool.map(pair, zip(a, b, strict=True)):
            total.take(found)
    return total


def _by_hash(
    a: tuple[Store, Sequence[Record]], b: tuple[Store, Sequence[Record]], tally: Tally, part_rows: int
) -> Joined:
    rows = sum(record.rows for _, files in (a, b) for record in files)
    parts = min(MOST_PARTS, max(1, -(-rows // part_rows)))
    how = f"by hash of the id ({parts:,} {'part' if parts == 1 else 'parts'}): other seeds or numbers of files"
    total = Joined(how=how, files_read=len(a[1]) + len(b[1]))
    try:
        with TemporaryDirectory(prefix="winnow-") as name:
            sides = [Path(name) / "a", Path(name) / "b"]
            for folder, (store, files) in zip(sides, (a, b), strict=True):
                folder.mkdir()
                _split(store, files, folder, parts, tally)
            for part in range(parts):
                total.take(matched(*(pl.read_ipc(folder / str(part)) for folder in sides)))
    except OSError as error:
        need = f"about {max(1, rows * SPILLED_BYTES >> 20):,} MiB"
        raise StoreError(
            f"{gettempdir()}: {error.strerror or error}; the join needs {need} there, or set TMPDIR"
        ) from error
    return total


def _split(store: Store, files: Sequence[Record], folder: Path, parts: int, tally: Tally) -> None:
    """The rows of one side, each in the part that its id's hash says. The folder is a temporary one."""
    with ExitStack() as stack:
        writers = []
        for part in range(parts):
            sink = stack.enter_context(pa.OSFile(str(folder / str(part)), "wb"))
            writers.append(stack.enter_context(pa.ipc.new_file(sink, SCHEMA)))
        for record in files:
            for frame in _frames(store, record, tally):
                split = frame.with_columns((pl.col(ID).hash() % parts).alias("part"))
                for (part, *_), rows in split.partition_by("part", as_dict=True, include_key=False).items():
                    writers[part].write_table(rows.to_arrow().cast(SCHEMA))


def _all(store: Store, record: Record, tally: Tally) -> pl.DataFrame:
    return pl.concat(list(_frames(store, record, tally)))


def _frames(store: Store, record: Record, tally: Tally) -> Iterator[pl.DataFrame]:
    """Id, origin and hash of the text of every row, a row group at a time; at least one frame."""
    with opened(store, record.path, tally) as file:
        groups = file.metadata.num_row_groups
        for group in range(groups):
            yield _hashed(file.read_row_group(group, columns=[ID, ORIGIN, TEXT], use_threads=False))
        if not groups:
            yield _hashed(file.schema_arrow.empty_table().select([ID, ORIGIN, TEXT]))


def _hashed(table: pa.Table) -> pl.DataFrame:
    frame = pl.DataFrame(pl.from_arrow(table))
    return frame.select(pl.col(ID), pl.col(ORIGIN), pl.col(TEXT).hash().alias(TEXT_HASH))


def matched(a: pl.DataFrame, b: pl.DataFrame) -> Joined:
    """Of rows with ``id``, ``origin`` and ``text_hash``: as many pairs of an id as both sides have are matched."""
    ids = _counts(a, [ID], "a").join(_counts(b, [ID], "b"), on=ID, how="full", coalesce=True)
    ids = ids.with_columns(pl.col("a").fill_null(0), pl.col("b").fill_null(0))
    texts = _counts(a, [ID, TEXT_HASH], "a").join(_counts(b, [ID, TEXT_HASH], "b"), on=[ID, TEXT_HASH])
    equal = texts.with_columns(pl.min_horizontal("a", "b").alias("equal")).group_by(ID).agg(pl.col("equal").sum())
    ids = ids.join(equal, on=ID, how="left").with_columns(pl.col("equal").fill_null(0).cast(pl.Int64))
    ids = ids.with_columns((pl.min_horizontal("a", "b") - pl.col("equal")).alias("changed"))
    more_a, more_b = ids.filter(pl.col("a") > pl.col("b")), ids.filter(pl.col("b") > pl.col("a"))
    changed = ids.filter(pl.col("changed") > 0)
    return Joined(
        same=int(ids["equal"].sum()),
        changed=int(ids["changed"].sum()),
        only_a=_by_origin(more_a.with_columns((pl.col("a") - pl.col("b")).alias("rows")), "origin_a"),
        only_b=_by_origin(more_b.with_columns((pl.col("b") - pl.col("a")).alias("rows")), "origin_b"),
        sample_changed=changed[ID].sort()[:NAMED].to_list(),
        sample_a=more_a[ID].sort()[:NAMED].to_list(),
        sample_b=more_b[ID].sort()[:NAMED].to_list(),
    )


def _counts(frame: pl.DataFrame, by: list[str], name: str) -> pl.DataFrame:
    return frame.group_by(by).agg(pl.len().cast(pl.Int64).alias(name), pl.col(ORIGIN).first().alias(f"{ORIGIN}_{name}"))


def _by_origin(rows: pl.DataFrame, column: str) -> Counter[str]:
    grouped = rows.group_by(column).agg(pl.col("rows").sum())
    return Counter({str(origin): int(count) for origin, count in grouped.iter_rows()})
