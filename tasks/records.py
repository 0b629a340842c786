"""Records make a shard finished; a finished stage compacts them into one manifest, which resume reads."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field

from tasks.commit import create, remove
from tasks.dataset import FORMAT_VERSION, Folder, Shard, version_of
from tasks.store import Store, StoreError
from tasks.summary import Accounts

READERS = 16
M = TypeVar("M", "Record", "Manifest")


class InputShard(BaseModel):
    """One shard that was read: its token says cheaply whether it may have changed, its content whether it has."""

    model_config = ConfigDict(extra="forbid")

    name: str
    path: str
    token: str
    content_id: str


class Record(BaseModel):
    """A finished shard: where its data lies, what went into it, and its accounts."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT_VERSION
    stage: str
    fingerprint: str
    name: str
    key: str
    path: str
    sha256: str
    bytes: int
    rows: int
    accounts: Accounts
    inputs: list[InputShard]
    quarantine: str = Field("", description="Path of the quarantined rows, empty where there are none.")
    adopted: bool = Field(False, description="The data was there before its record: a run was cut off in between.")
    attempt: int = Field(0, description="0, or how often its quarantined rows have been retried.")
    base: str = Field("", description="Shard key of attempt 0, which the inputs decide; empty where this is it.")
    supersedes: str = Field("", description="Shard key of the shard in whose place this one stands since a retry.")
    replaces: str = Field("", description="SHA-256 of that shard, by which those know it that were made of it.")
    retry_of: str = Field("", description="The run in whose retry it was made.")
    notes: dict[str, int] = Field(default_factory=dict, description="Of this run alone: completions generated, ...")
    seconds: float = 0.0

    @property
    def base_key(self) -> str:
        return self.base or self.key

    def shard(self) -> Shard:
        return Shard(
            name=self.name,
            path=self.path,
            size=self.bytes,
            content=self.sha256,
            key=self.key,
            rows=self.rows,
            replaces=self.replaces,
        )


class Manifest(BaseModel):
    """All records of one finished stage over one dataset version.

    Written without what all of them share with the manifest and without what is as usual: half the size.
    """

    format_version: int = FORMAT_VERSION
    stage: str
    fingerprint: str
    dataset_version: str
    records: list[Record]

    def dumped(self) -> bytes:
        held = self.model_dump(exclude={"records": {"__all__": SHARED}}, exclude_defaults=True)
        return orjson.dumps({"format_version": FORMAT_VERSION, **held})


SHARED = {"format_version", "stage", "fingerprint"}


@dataclass(frozen=True)
class Known:
    """What is on record of a stage. ``manifests``: those that were read, by path. ``loose``: paths of records beside
    them.
    """

    records: list[Record]
    manifests: dict[str, list[Record]]
    loose: frozenset[str]

    def of_manifests(self) -> list[Record]:
        return [record for held in self.manifests.values() for record in held]


@contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's search for cycles, which goes through all of ten thousand records again and again while they are
    made and takes half of the time. None of them is in a cycle.
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def write_record(store: Store, folder: Folder, record: Record) -> None:
    create(store, _place(folder, record), orjson.dumps(record.model_dump(), option=orjson.OPT_INDENT_2))


def read_records(store: Store, folder: Folder, left_out: Container[str] = ()) -> list[Record]:
    """Every record of the stage: compacted in manifests, or loose since the last compaction.

    ``left_out``: paths of manifests and records that are not read.
    """
    return read_known(store, folder, left_out).records


def read_known(
    store: Store,
    folder: Folder,
    left_out: Container[str] = (),
    enough: Callable[[Collection[Record]], bool] = lambda records: False,
) -> Known:
    """Loose records, then manifests from the newest on, until there is ``enough``.

    A loose record that another run compacts meanwhile is found in its manifest, which is listed later.
    """
    found: dict[tuple[str, ...], Record] = {}
    loose = [entry.path for entry in store.entries(folder.records) if entry.path not in left_out]
    if loose:
        with ThreadPoolExecutor(READERS) as pool:
            for maybe in pool.map(lambda path: _parse_if_there(store, path), loose):
                if maybe is not None:
                    found[seen(maybe)] = maybe
    manifests: dict[str, list[Record]] = {}
    newest_first = sorted(store.entries(folder.manifests), key=lambda entry: entry.modified, reverse=True)
    for entry in newest_first:
        if entry.path in left_out:
            continue
        if manifests and enough(found.values()):
            break
        manifests[entry.path] = held = _parse(Manifest, store, entry.path).records
        found = {**{seen(record): record for record in held}, **found}
    return Known(list(found.values()), manifests, frozenset(loose))


def read_manifest(store: Store, folder: Folder, version: str) -> Manifest | None:
    """The records of a finished stage over one dataset version; None where they were removed."""
    path = f"{folder.manifests}/{version}.json"
    return None if store.entry(path) is None else _parse(Manifest, store, path)


def compact(
    store: Store, folder: Folder, records: list[Record], known: Known | None = None, made: Iterable[Record] = ()
) -> str:
    """Commits the manifest of a finished stage, removes the loose records in it, returns the dataset version.

    ``known``: what the stage had on record before, ``made``: the records written since; without them it is read.
    """
    known = known or read_known(store, folder)
    version = version_of(record.key for record in records)
    path = f"{folder.manifests}/{version}.json"
    if path in known.manifests or not _create(store, path, folder, version, records):
        held = known.manifests[path] if path in known.manifests else _parse(Manifest, store, path).records
        if not _holds(held, records) and not _holds([*held, *known.of_manifests()], records):
            # the same shards were seen under other tokens, say after their files were written again: that is worth a
            # manifest too, or the loose records would be read one by one for ever
            told = "\n".join(sorted("\0".join(seen(record)) for record in records))
            tokens = sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:8]
            _create(store, f"{folder.manifests}/{version}-{tokens}.json", folder, version, records)
    beside = known.loose | {_place(folder, record) for record in made}
    for gone in sorted(beside & {_place(folder, record) for record in records}) if beside else ():
        remove(store, gone)
    return version


def _holds(held: Iterable[Record], records: Iterable[Record]) -> bool:
    held = list(held)
    same = {id(one) for one in held}
    other = [record for record in records if id(record) not in same]  # mostly none: they were read from there
    return not other or {seen(record) for record in other} <= {seen(one) for one in held}


def _create(store: Store, path: str, folder: Folder, version: str, records: list[Record]) -> bool:
    ordered = sorted(records, key=lambda record: record.name)
    manifest = Manifest(stage=folder.stage, fingerprint=folder.fingerprint, dataset_version=version, records=ordered)
    return create(store, path, manifest.dumped())


def _place(folder: Folder, record: Record) -> str:
    return folder.record(record.key, [one.token for one in record.inputs])


def seen(record: Record) -> tuple[str, ...]:
    """What tells records apart: the shard, and the version tokens of its inputs when they were read."""
    return (record.key, *(one.token for one in record.inputs))


def _parse_if_there(store: Store, path: str) -> Record | None:
    try:
        return _parse(Record, store, path)
    except StoreError:
        # another run may have compacted the record into its manifest since the listing: then the shard is adopted again
        if store.entry(path) is None:
            return None
        raise


def _parse(model: type[M], store: Store, path: str) -> M:
    raw = store.read(path)
    try:
        held = orjson.loads(raw)
        version = held.get("format_version") if isinstance(held, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise StoreError(
                f"{store.url_of(path)}: record format {version}, this winnow reads {FORMAT_VERSION}; use a newer winnow"
            )
        if version not in (OLDEST_FORMAT, FORMAT_VERSION):
            raise ValueError(f"format {version}")
        return model.model_validate(_as_today(held))
    except ValueError as error:  # orjson's and pydantic's alike
        raise StoreError(
            f"{store.url_of(path)}: not a readable {model.__name__.lower()} ({type(error).__name__}); remove it, "
            "and the run makes it again from the data"
        ) from error


OLDEST_FORMAT = 1
"""Its manifests repeat in every record what the manifest says, and hold what is as usual; its records are today's."""


def _as_today(held: dict[str, Any]) -> dict[str, Any]:
    """What was written in an older format, in today's. A manifest's records get back what they share with it."""
    shared = {"format_version": FORMAT_VERSION, "stage": held.get("stage"), "fingerprint": held.get("fingerprint")}
    records = held.get("records")
    for one in records if isinstance(records, list) else ():
        if isinstance(one, dict):
            one.update(shared)
    held["format_version"] = FORMAT_VERSION
    return held
