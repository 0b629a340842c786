"""What of a stage is finished, and what is to be done: nothing, a unit that was never finished, or in a retry its
quarantined rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from tasks.aligned import Unit
from tasks.dataset import Folder, Shard, slug
from tasks.records import Record
from tasks.store import StoreError
from tasks.summary import Shape


@dataclass(frozen=True)
class Retry:
    """The run ``run_id`` is being retried: what it left in quarantine is done again. ``fingerprints``: of its stages by
    name, since a stage that is another by now would not retry a few rows but make everything anew.
    """

    run_id: str
    fingerprints: Mapping[str, str]

    def wants(self, record: Record) -> bool:
        """Whether the shard left rows in quarantine and was not made by this very retry."""
        return record.accounts.quarantined > 0 and record.retry_of != self.run_id

    def check(self, folder: Folder, shape: Shape) -> None:
        """Raises StoreError for a stage that is no longer the one that ran. Builds are: their cuts follow the rows."""
        stood = self.fingerprints.get(folder.stage, folder.fingerprint)
        if shape is not Shape.BUILD and stood != folder.fingerprint:
            raise StoreError(
                f"{folder.stage}: it is {folder.fingerprint} here and was {stood} in run {self.run_id}: winnow, a "
                "model, a prompt or the engine is another; run the flow again, which makes the stage anew"
            )


def explained(records: Collection[Record], standing: Mapping[str, int], work: Sequence[Unit], folder: Folder) -> bool:
    """Whether older records could say nothing new: no file of an unfinished shard stands, and no superseded one, that
    these records do not name. Without it a nightly run would read the manifests of all the nights before.
    """
    found = finished_shards(list(records), standing, work)
    named = {record.path for record in records}
    if any(folder.file(one.name, one.supersedes) in standing for one in records if one.supersedes):
        return False
    if len(found) == len(work):
        return True
    unnamed = {path.rsplit("/", 1)[-1].rsplit("-", 1)[0] for path in standing.keys() - named}
    return not any(slug(unit.name) in unnamed for unit in work if unit.name not in found)


def finished_shards(known: Sequence[Record], standing: Mapping[str, int], work: Sequence[Unit]) -> dict[str, Record]:
    """Records whose inputs are what lies there now and whose data file still stands with its size; of several
    attempts the latest.
    """
    by_name: dict[str, list[Record]] = {}
    for record in known:
        if standing.get(record.path) == record.bytes:
            by_name.setdefault(record.name, []).append(record)
    found: dict[str, Record] = {}
    for unit in work:
        for record in by_name.get(unit.name, []):
            older = found.get(unit.name)
            if _same_inputs(record, unit.shards) and (older is None or record.attempt >= older.attempt):
                found[unit.name] = record
    return found


def to_do(
    work: Sequence[Unit],
    found: Mapping[str, Record],
    known: Sequence[Record],
    standing: Mapping[str, int],
    retry: Retry | None,
) -> tuple[list[Unit], list[str]]:
    """Units that are not finished, and in a retry those that left rows in quarantine, whose names come second."""
    if retry is None and len(found) == len(work):
        return [], []
    named: dict[str, list[Record]] = {}
    for record in known:
        if standing.get(record.path) == record.bytes:
            named.setdefault(record.name, []).append(record)
    again = [] if retry is None else [name for name, record in found.items() if retry.wants(record)]
    todo = [
        replace(
            unit,
            again=found[unit.name] if unit.name in again else None,
            retry_of=retry.run_id if retry else "",
            attempts=tuple(record for record in named.get(unit.name, []) if record.attempt),
            instead=next((one for one in named.get(unit.name, []) if _of_superseded(one, unit.shards)), None),
        )
        for unit in work
        if unit.name not in found or unit.name in again
    ]
    return todo, again


def _of_superseded(record: Record, shards: Sequence[Shard]) -> bool:
    """Whether it was made of these shards as they were before a retry."""
    return len(record.inputs) == len(shards) and all(
        seen.content_id in (shard.content_id, f"{shard.replaces or shard.content}{shard.reading}")
        for seen, shard in zip(record.inputs, shards, strict=True)
    )


def _same_inputs(record: Record, shards: Sequence[Shard]) -> bool:
    """A known content decides, else the version token does; both together with how the bytes are read."""
    if len(record.inputs) != len(shards):
        return False
    for seen, shard in zip(record.inputs, shards, strict=True):
        same = seen.content_id == shard.content_id if shard.content else seen.token == shard.token
        if not same or seen.content_id.partition(":")[1:] != shard.reading.partition(":")[1:]:
            return False
    return True
