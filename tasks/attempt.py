"""Attempts at one shard: the first, and those that did the rows which an earlier one had quarantined.

Nothing is overwritten: a retry comes out as a new file, under a key made of the key of the shard it supersedes, and
its record names that shard. Readers take the latest attempt that stands. What was made of a superseded shard is
superseded by what is made of its successor. Once the successor's record stands, no run can choose the superseded shard
again; it is removed then, so that a reader of the whole folder meets no row twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.commit import remove
from tasks.dataset import Folder, shard_key
from tasks.records import InputShard, Record
from tasks.source import ShardError
from tasks.store import Store

if TYPE_CHECKING:
    from tasks.aligned import Unit


@dataclass(frozen=True, slots=True)
class Attempt:
    """``base``: shard key of the first attempt, which the inputs decide alone. ``supersedes`` and ``replaces``: key and
    content of the shard in whose place it comes. ``retry_of``: the run in whose retry it is made, if it is.
    """

    base: str
    key: str
    number: int = 0
    supersedes: str = ""
    replaces: str = ""
    retry_of: str = ""

    @classmethod
    def at(cls, unit: Unit, folder: Folder, seen: Sequence[InputShard]) -> Attempt:
        """The attempt at this unit that is to be made, or adopted where it stands. Raises ShardError where a shard
        to be retried is another by now.
        """
        base = shard_key(folder.fingerprint, unit.name, [one.content_id for one in seen])
        before = unit.again
        if before is not None:
            if before.base_key != base:
                raise ShardError(f"{unit.name}: it changed while it was to be retried; run the flow again, then retry")
            return cls(
                base, key_after(before.key, unit.name), before.attempt + 1, before.key, before.sha256, unit.retry_of
            )
        later = [record for record in unit.attempts if record.base_key == base]
        if later:
            last = max(later, key=lambda record: record.attempt)
            return cls(base, last.key, last.attempt, last.supersedes, last.replaces, last.retry_of)
        if unit.instead is not None:
            return cls(base, base, 0, unit.instead.key, unit.instead.sha256, unit.retry_of)
        return cls(base, base, retry_of=unit.retry_of)


def key_after(key: str, name: str) -> str:
    """Key of the attempt after the one with this key: the same wherever and however often the retry is started."""
    return shard_key("retry", name, [key])


def standing_table(store: Store, record: Record) -> pa.Table:
    """The rows of a finished shard. Raises ShardError where they are not those that its record names."""
    with store.fetched(record.path) as (local, digest):
        if digest != record.sha256:
            raise ShardError(f"{store.url_of(record.path)}: its bytes are not those of its record; see winnow verify")
        return pq.read_table(local).replace_schema_metadata(None)


def superseded(records: Iterable[Record], standing: Mapping[str, int]) -> set[str]:
    """Keys of the shards in whose place a later attempt stands. ``standing``: size of each data file by path."""
    before = {one.key: one.supersedes for one in records if one.supersedes}
    found: set[str] = set()
    for one in records:
        key = one.supersedes if standing.get(one.path) == one.bytes else ""
        while key and key not in found:
            found.add(key)
            key = before.get(key, "")
    return found


def retire(store: Store, folder: Folder, records: Sequence[Record], standing: Mapping[str, int]) -> None:
    """Removes superseded shards: their quarantine, then the loose record, then the data, whose standing says that
    there is something to do. What is left of it by a kill, the next run of the stage removes.
    """
    for later in records:
        path = folder.file(later.name, later.supersedes) if later.supersedes else ""
        if path not in standing or standing.get(later.path) != later.bytes:
            continue
        for old in (one for one in records if one.key == later.supersedes):
            if old.quarantine:
                remove(store, old.quarantine)
            remove(store, folder.record(old.key, [one.token for one in old.inputs]))
        remove(store, path)
