"""Records make a shard finished; a finished stage compacts them into one manifest, which resume reads."""

from __future__ import annotations

from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

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
    """All records of one finished stage over one dataset version."""

    format_version: int = FORMAT_VERSION
    stage: str
    fingerprint: str
    dataset_version: str
    records: list[Record]


def write_record(store: Store, folder: Folder, record: Record) -> None:
    tokens = [one.token for one in record.inputs]
    create(store, folder.record(record.key, tokens), orjson.dumps(record.model_dump(), option=orjson.OPT_INDENT_2))


def read_records(store: Store, folder: Folder, left_out: Container[str] = ()) -> list[Record]:
    """Every record of the stage: compacted in manifests, or loose since the last compaction.

    ``left_out``: paths of manifests and records that are not read.
    """
    found: dict[tuple[str, ...], Record] = {}
    for entry in store.entries(folder.manifests):
        if entry.path not in left_out:
            for record in _parse(Manifest, store, entry.path).records:
                found[seen(record)] = record
    loose = [entry.path for entry in store.entries(folder.records) if entry.path not in left_out]
    with ThreadPoolExecutor(READERS) as pool:
        for maybe in pool.map(lambda path: _parse_if_there(store, path), loose):
            if maybe is not None:
                found[seen(maybe)] = maybe
    return list(found.values())


def read_manifest(store: Store, folder: Folder, version: str) -> Manifest | None:
    """The records of a finished stage over one dataset version; None where they were removed."""
    path = f"{folder.manifests}/{version}.json"
    return None if store.entry(path) is None else _parse(Manifest, store, path)


def compact(store: Store, folder: Folder, records: list[Record]) -> str:
    """Commits the manifest of a finished stage, removes the loose records in it, returns the dataset version."""
    version = version_of(record.key for record in records)
    path = f"{folder.manifests}/{version}.json"
    ordered = sorted(records, key=lambda record: record.name)
    manifest = Manifest(stage=folder.stage, fingerprint=folder.fingerprint, dataset_version=version, records=ordered)
    if not create(store, path, orjson.dumps(manifest.model_dump())):
        known = {seen(record) for record in _parse(Manifest, store, path).records}
        records = [record for record in records if seen(record) in known]
    held = {folder.record(record.key, [one.token for one in record.inputs]) for record in records}
    for entry in store.entries(folder.records):
        if entry.path in held:
            remove(store, entry.path)
    return version


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
        if version != FORMAT_VERSION:
            raise ValueError(f"format {version}")
        return model.model_validate(held)
    except ValueError as error:  # orjson's and pydantic's alike
        raise StoreError(
            f"{store.url_of(path)}: not a readable {model.__name__.lower()} ({type(error).__name__}); remove it, "
            "and the run makes it again from the data"
        ) from error
