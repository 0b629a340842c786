"""Reading the aligned shards of one unit as one table: rows of the base joined with its annotations by ordinal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.dataset import Dataset, Shard
from tasks.records import InputShard, Record
from tasks.source import ID, PROBLEM, RAW, ShardError, SourceColumns, read_source
from tasks.store import Store, StoreError

STATUS, REASON, UPSTREAM = "status", "reason", "upstream"
OK, QUARANTINED, SKIPPED = "ok", "quarantined", "skipped"


@dataclass(frozen=True, slots=True)
class Unit:
    """One piece of work: the shards, one of each input dataset, that share a name.

    ``again``: the finished shard whose quarantined rows alone are to be done. ``retry_of``: id of the run that is being
    retried. ``attempts``: later attempts that stand under this name, whatever they were made of. ``instead``: the
    finished shard that was made of what a retry superseded, and is superseded with it.
    """

    name: str
    shards: tuple[Shard, ...]
    again: Record | None = None
    retry_of: str = ""
    attempts: tuple[Record, ...] = ()
    instead: Record | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """How the shards of one input dataset are read. Travels to the worker; the list of shards does not."""

    store: Store
    columns: SourceColumns | None

    @staticmethod
    def of(dataset: Dataset) -> Input:
        return Input(dataset.store, dataset.columns)


def units(inputs: Sequence[Dataset]) -> list[Unit]:
    """A unit for every name that all the input datasets hold, in name order."""
    base, tables = inputs[0], [dataset.by_name() for dataset in inputs[1:]]
    return [
        Unit(shard.name, (shard, *(table[shard.name] for table in tables)))
        for shard in base.shards
        if all(shard.name in table for table in tables)
    ]


def read_unit(inputs: Sequence[Input], unit: Unit, columns: Iterable[str]) -> tuple[pa.Table, list[InputShard]]:
    """One row a base row, in order: ``id``, the wanted columns, ``problem``, ``raw`` and ``upstream``.

    ``upstream`` is the status that an input gave the row where it is not ok: such a row is skipped, not done again.
    A column is taken from the first input that has it. Raises ShardError for a column that none has, and where
    an annotation does not have as many rows as its base.
    """
    wanted = [column for column in dict.fromkeys(columns) if column != ID]
    found: dict[str, Any] = {}
    upstream: Any = None
    seen: list[InputShard] = []
    for place, (one, shard) in enumerate(zip(inputs, unit.shards, strict=True)):
        missing = [column for column in wanted if column not in found]
        table, digest = _read(one, shard, missing, base=place == 0)
        rows = found[ID] if found else table.column(ID)
        if table.num_rows != len(rows):
            raise ShardError(
                f"{one.store.url_of(shard.path)}: {table.num_rows} rows beside {len(rows)} of the shard it annotates"
            )
        seen.append(_seen(one, shard, digest))
        for name in table.column_names:
            if name == STATUS:
                state = table.column(STATUS)
                state = pc.if_else(pc.equal(state, OK), pa.scalar(None, pa.string()), state)
                upstream = state if upstream is None else pc.coalesce(upstream, state)
            elif name not in found and (name in missing or name in (ID, PROBLEM, RAW)):
                found[name] = table.column(name)
    lacking = [column for column in wanted if column not in found]
    if lacking:
        raise ShardError(f"{unit.name}: no input has the column {lacking[0]!r}")
    count = len(found[ID])
    found.setdefault(PROBLEM, pa.nulls(count, pa.string()))
    found.setdefault(RAW, pa.nulls(count, pa.binary()))
    found[UPSTREAM] = upstream if upstream is not None else pa.nulls(count, pa.string())
    return pa.table({name: found[name] for name in (ID, *wanted, PROBLEM, RAW, UPSTREAM)}), seen


def _seen(one: Input, shard: Shard, digest: str) -> InputShard:
    if shard.content and digest != shard.content:
        raise StoreError(f"{one.store.url_of(shard.path)}: its bytes are not those that were read or written before")
    return InputShard(name=shard.name, path=shard.path, token=shard.token, content_id=f"{digest}{shard.reading}")


def _read(one: Input, shard: Shard, columns: Sequence[str], base: bool) -> tuple[pa.Table, str]:
    if one.columns is not None:
        have = {*(ours for ours, _ in one.columns.mapping), "text", "url", "date"}
        wanted = [column for column in columns if column in have]
        return read_source(Dataset(one.store, (shard,), one.columns), shard, wanted)
    with one.store.fetched(shard.path) as (local, digest):
        try:
            file = pq.ParquetFile(local)
            names = set(file.schema_arrow.names)
            keep = [column for column in dict.fromkeys([*columns, ID, STATUS]) if column in names]
            return file.read(columns=keep).replace_schema_metadata(None), digest
        except (pa.ArrowException, OSError) as error:
            raise ShardError(f"{one.store.url_of(shard.path)}: cannot be read ({error})") from error
