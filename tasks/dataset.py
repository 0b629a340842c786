"""The dataset contract: shards known by content, datasets as sets of shards, and where everything lies.

An output root holds ``<stage>/<fingerprint>/*.parquet`` and nothing else in those folders; records, manifests,
quarantine, ledger, cards and reports lie under ``.winnow/``. A file's name ends in its shard key, so nothing is
overwritten.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tasks.store import Store

if TYPE_CHECKING:
    from tasks.source import SourceColumns

FORMAT_VERSION = 2
"""Of records and manifests. tasks/records.py reads every older one."""
IDENTITY_VERSION = 1
"""Part of every fingerprint. A new one makes everything anew at every output root, so a new way to write records down
leaves it alone."""
HIDDEN = ".winnow"
KEY_LENGTH = 12
SLUG_LENGTH = 80


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a dataset.

    ``name``: relative path of the source file that it descends from (aligned shards share it). ``content``: SHA-256 of
    the bytes, empty while nobody has read them. ``head``: only the first rows belong to the dataset (``--limit``).
    ``view``: hash of the column mapping that the bytes are read with, empty without one.
    ``key``: shard key of one of our own files, empty for a foreign one. ``replaces``: content of the shard that this
    one superseded in a retry, empty where it did not.
    """

    name: str
    path: str
    token: str = ""
    size: int = 0
    content: str = ""
    key: str = ""
    rows: int | None = None
    head: int | None = None
    view: str = ""
    replaces: str = ""

    @property
    def reading(self) -> str:
        """How the bytes become rows, as a suffix of the content id: the mapping and the cut, where there are any."""
        view = f":view={self.view}" if self.view else ""
        return view if self.head is None else f"{view}:head={self.head}"

    @property
    def content_id(self) -> str:
        """What identifies the rows: content, and how it is read."""
        return f"{self.content}{self.reading}"


@dataclass(frozen=True)
class Dataset:
    """Shards in one store, in name order. ``columns`` maps a foreign source's columns; None for our own files.

    ``mark`` is what later fingerprints take from it: the fingerprint of the stage that made it, of a foreign source
    how it is read (mapping, ``--limit``). So a stage folder never mixes rows that were made or read in two ways.
    """

    store: Store
    shards: tuple[Shard, ...]
    columns: SourceColumns | None = None
    mark: str = ""

    @property
    def version(self) -> str:
        """Hash over the sorted shard keys (of a foreign dataset: names and content ids)."""
        return version_of(shard.key or f"{shard.name}\0{shard.content_id}" for shard in self.shards)

    def by_name(self) -> dict[str, Shard]:
        return {shard.name: shard for shard in self.shards}

    def with_contents(self, contents: dict[str, str]) -> Dataset:
        """The same dataset with the content hashes that a stage learnt while reading it."""
        shards = tuple(replace(s, content=contents.get(s.name, s.content)) for s in self.shards)
        return replace(self, shards=shards)

    def only(self, names: Iterable[str]) -> Dataset:
        wanted = set(names)
        return replace(self, shards=tuple(shard for shard in self.shards if shard.name in wanted))


def version_of(keys: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(keys)).encode("utf-8", "surrogatepass")).hexdigest()[:KEY_LENGTH]


def shard_key(fingerprint: str, name: str, contents: Sequence[str]) -> str:
    """hash(stage fingerprint, relative path, content ids of the input shards): 64 hex digits."""
    state = hashlib.sha256()
    for part in (fingerprint, name, *contents):
        raw = part.encode("utf-8", "surrogatepass")
        state.update(len(raw).to_bytes(8, "little"))
        state.update(raw)
    return state.hexdigest()


def slug(name: str) -> str:
    """A file name made from a relative path: safe everywhere, and unique only together with a shard key."""
    stem = re.sub(r"\.(parquet|jsonl|ndjson)(\.(gz|zst))?$", "", name)
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._") or "shard"
    return safe[-SLUG_LENGTH:].lstrip("._-") or "shard"


@dataclass(frozen=True, slots=True)
class Folder:
    """Where one stage with one fingerprint keeps its things."""

    stage: str
    fingerprint: str
    hidden: bool = False

    @property
    def _place(self) -> str:
        return f"{self.stage}/{self.fingerprint}"

    @property
    def data(self) -> str:
        return f"{HIDDEN}/{self._place}" if self.hidden else self._place

    def file(self, name: str, key: str) -> str:
        return f"{self.data}/{slug(name)}-{key[:KEY_LENGTH]}.parquet"

    def quarantine(self, name: str, key: str, rows: str) -> str:
        """``rows``: hash of which rows are quarantined and why. A second attempt may come to others."""
        return f"{HIDDEN}/quarantine/{self._place}/{slug(name)}-{key[:KEY_LENGTH]}-{rows[:8]}.parquet"

    @property
    def records(self) -> str:
        return f"{HIDDEN}/records/{self._place}"

    def record(self, key: str, tokens: Sequence[str]) -> str:
        seen = hashlib.sha256("\n".join(tokens).encode("utf-8", "surrogatepass")).hexdigest()[:8]
        return f"{self.records}/{key[:32]}-{seen}.json"

    @property
    def manifests(self) -> str:
        return f"{HIDDEN}/manifests/{self._place}"
