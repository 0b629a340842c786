"""Finds the rows of an id: by its computed place in the corpus, in one shard, or by a scan of the id columns.

A corpus row lies where a seeded number of its id puts it, so its one file is known without looking. Everything else has
no such place: a document that was dropped is found by reading the ``id`` column of the first annotation, row groups
left out where their statistics exclude it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from operators.base import uniform
from tasks.gather import partition_name
from tasks.lineage.reading import Tally, opened, rows_where
from tasks.records import Record
from tasks.source import ID
from tasks.summary import Shape
from tasks.version import SCATTER, StageVersion, Version

SCAN_WITHOUT_ASKING = 5_000_000
"""Rows whose ids are read even where the corpus gave an answer, to show every row of a repeated id: about a second."""
REMOTE_READERS = 32
SOURCE = ""
"""Space of the source documents; that of rewritten rows is named after the rewrite stage."""


@dataclass(frozen=True, slots=True, order=True)
class Found:
    """One row with the id: its space, the shard there and its number in it."""

    space: str
    shard: str
    ordinal: int


@dataclass(frozen=True)
class Layout:
    """Which stages speak of which rows. ``annotations``: space -> stages aligned with it, in the order they ran."""

    annotations: dict[str, list[StageVersion]]
    rewrites: dict[str, list[StageVersion]]
    scatters: dict[str, StageVersion]

    def holder(self, space: str) -> StageVersion | None:
        """The stage with an ``id`` for every row of the space: the rewrite itself, or the fullest annotation."""
        if space == SOURCE:
            return max(self.annotations.get(SOURCE, []), key=lambda stage: len(stage.records), default=None)
        return next((one for made in self.rewrites.values() for one in made if one.name == space), None)

    @property
    def spaces(self) -> list[str]:
        return [SOURCE, *(stage.name for made in self.rewrites.values() for stage in made)]


def layout(version: Version) -> Layout:
    """Told from what each stage's records name as their first input, so no flow has to be known here."""
    found = Layout({}, {}, {})
    space_of: dict[str, str] = {}  # path of a shard -> the space of its rows
    for stage in version.stages.values():
        if stage.summary.shape is Shape.BUILD and stage.summary.operator != SCATTER:
            continue  # its records are not needed, and at many shards they are long to read
        first = next(iter(stage.records.values()), None) if _readable(stage) else None
        if first is None or not first.inputs or not first.inputs[0].path:
            continue
        space = space_of.get(first.inputs[0].path, SOURCE)
        if stage.summary.operator == SCATTER:
            found.scatters[space] = stage
        elif stage.summary.shape is Shape.ANNOTATE:
            found.annotations.setdefault(space, []).append(stage)
            space_of |= dict.fromkeys((one.path for one in stage.records.values()), space)
        elif stage.summary.shape is Shape.REWRITE:
            found.rewrites.setdefault(space, []).append(stage)
            space_of |= dict.fromkeys((one.path for one in stage.records.values()), stage.name)
    return found


def _readable(stage: StageVersion) -> bool:
    return bool(stage.summary.dataset_version or stage.summary.accounts.rows_in)


def corpus_file(version: Version, row_id: str) -> Record | None:
    """The one file of the corpus that can hold the id; None where there is no corpus."""
    gather = version.gather
    if gather is None or not gather.records:
        return None
    partitions = len(gather.records)
    place = uniform(version.seed, "place", row_id)
    number = int(place * partitions)
    # the same comparison as the build's, whatever the product was rounded to
    while place < number / partitions:
        number -= 1
    while place >= (number + 1) / partitions:
        number += 1
    return gather.records.get(partition_name(number, partitions))


def corpus_rows(version: Version, row_id: str, tally: Tally) -> list[dict[str, Any]]:
    """Every corpus row of the id, with ``file`` and ``row`` beside its columns without the text."""
    record = corpus_file(version, row_id)
    if record is None:
        return []
    found = []
    with opened(version.store, record.path, tally) as file:
        columns = [name for name in file.schema_arrow.names if name != "text"]
        starts = _starts(file)
        for row in rows_where(file, ID, row_id):
            group = max(number for number, start in enumerate(starts) if start <= row)
            table = file.read_row_group(group, columns=columns, use_threads=False)
            held = table.slice(row - starts[group], 1).to_pylist()[0]
            found.append({**held, "file": record.path, "row": row})
    return found


def _starts(file: Any) -> list[int]:
    starts = [0]
    for group in range(file.metadata.num_row_groups - 1):
        starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
    return starts


def scan(stage: StageVersion, row_id: str, names: Iterable[str] | None, tally: Tally) -> Iterator[tuple[str, int]]:
    """(shard, row number) of every row of the stage with this id; in the named shards, or in all of them."""
    wanted = sorted(stage.records if names is None else set(names) & stage.records.keys())
    store = stage.store
    store.absolute("")  # opens the connection once, before the threads ask for it

    def search(name: str) -> list[tuple[str, int]]:
        with opened(store, stage.records[name].path, tally) as file:
            return [(name, row) for row in rows_where(file, ID, row_id)]

    readers = min(len(wanted), 2 * (os.cpu_count() or 1) if store.local else REMOTE_READERS)
    if readers < 2:
        for name in wanted:
            yield from search(name)
        return
    with ThreadPoolExecutor(readers) as pool:
        for found in pool.map(search, wanted):
            yield from found


def parents(version: Version, rewrites: Iterable[StageVersion], row_id: str, tally: Tally) -> list[Found]:
    """A rewritten row through its parent: its id begins with the parent's, whose place in the corpus tells the shard.

    A shortcut alone: what it does not find may still be there.
    """
    found: list[Found] = []
    parts = row_id.split("/")
    for end in range(len(parts) - 1, 0, -1):
        for row in corpus_rows(version, "/".join(parts[:end]), tally):
            shard = row.get("source_shard")
            for stage in rewrites:
                if shard in stage.records:
                    found += [Found(stage.name, *one) for one in scan(stage, row_id, [shard], tally)]
        if found:
            break
    return sorted(set(found))
