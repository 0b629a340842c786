"""What lies at an output root that no kept version of the corpus needs. Reads; :mod:`tasks.garbage.sweep` deletes.

A version is a corpus, by its fingerprint, and is needed as the latest run that ended with it left it: the shards that
the manifests of its stages name, with quarantine and records, and the ledger blocks of the source shards it was made
of. Work that is newer than the latest version belongs to one that is still to come, and is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum

import pyarrow.parquet as pq
from pydantic import BaseModel, Field

from tasks.attempt import superseded
from tasks.commit import FOOTER, TEMPORARY, Footer
from tasks.dataset import HIDDEN, Folder
from tasks.garbage.kept import Kept, Needed, latest_versions, needed_by
from tasks.garbage.uploads import Upload, unfinished_uploads
from tasks.presence import RUNNING, Note, at_work
from tasks.records import read_records
from tasks.runs import REPORTS, RUNS, load_run, run_ids
from tasks.store import Entry, Store, StoreError

READERS = 16
GRACE_SECONDS = 6 * 3600.0
"""What a killed process left half written is taken for garbage once it is so old."""
LEDGER, QUARANTINE, PROBE = (f"{HIDDEN}/{name}" for name in ("ledger", "quarantine", "probe"))
RECORDS, MANIFESTS = f"{HIDDEN}/records", f"{HIDDEN}/manifests"
ORPHANED = "of source shards that are gone"
_MARK = re.compile(r"[0-9a-f]{12}")


class Kind(StrEnum):
    """What is deleted, in this order: nothing may claim what is gone."""

    RECORDS = "records"
    SHARDS = "shards"
    QUARANTINE = "quarantine"
    LEDGER = "ledger"
    REPORTS = "reports"
    RUNS = "runs"
    LEFTOVERS = "leftovers"


class Item(BaseModel):
    """One object that nothing needs. ``tokens``: generated ones that a ledger block holds."""

    path: str
    kind: Kind
    place: str = Field(description="Stage and fingerprint, or what else it belongs to.")
    reason: str
    bytes: int
    tokens: int = 0
    upload: str = Field("", description="Id of an upload that was never finished; its parts are no object yet.")


class Garbage(BaseModel):
    """``ledgers``: blocks that no kept version uses and that are kept all the same, for what they cost."""

    url: str
    kept: list[Kept]
    items: list[Item]
    ledgers: list[Item] = Field(default_factory=list)
    at_work: list[Note] = Field(default_factory=list, description="Runs that may be at work: nothing is deleted then.")
    runs: list[str] = Field(default_factory=list, exclude=True, description="All that had ended when it was listed.")
    foreign: list[str] = Field(default_factory=list, description="Files in winnow's folders that are not winnow's.")
    notes: list[str] = Field(default_factory=list)
    files: int = Field(0, description="Objects of winnow's that stay.")
    bytes: int = Field(0, description="Their size.")

    @property
    def total(self) -> int:
        return sum(item.bytes for item in self.items)


def find_garbage(store: Store, keep: int, now: float, ledgers: bool = False) -> Garbage:
    """Everything that the latest ``keep`` versions do not need. ``ledgers``: also completions that they do not use.

    Raises StoreError where no run ever ended, and for what cannot be read.
    """
    entries = store.entries()
    ids = run_ids(store)
    if not ids and not any(entry.path.startswith(f"{HIDDEN}/") for entry in entries):
        raise StoreError(f"{store.url}: holds no winnow run; give the --output of one")
    with ThreadPoolExecutor(READERS) as pool:
        runs = list(pool.map(lambda one: load_run(store, one), ids))
    kept, last = latest_versions(runs, keep)
    needed = needed_by(store, runs, kept, last, entries)
    garbage = Garbage(url=store.url, kept=list(kept.values()), items=[], at_work=at_work(store, entries, now), runs=ids)
    garbage.notes += needed.notes
    _Sorter(store, entries, needed, garbage, now, ledgers).sort()
    if not kept:
        garbage.notes.append("no corpus is finished here, so only leftovers are garbage; run the flow to its end first")
    return garbage


class _Sorter:
    """Tells garbage from what is needed, object by object."""

    def __init__(
        self, store: Store, entries: list[Entry], needed: Needed, garbage: Garbage, now: float, ledgers: bool
    ) -> None:
        self.store, self.entries, self.needed, self.garbage = store, entries, needed, garbage
        self.now, self.ledgers = now, ledgers
        self.standing = {entry.path: entry.size for entry in entries}

    def sort(self) -> None:
        blocks: list[Item] = []
        unsure: dict[str, list[Entry]] = {}
        for entry in self.entries:
            item = self._item(entry, unsure)
            if item is not None and item.kind is Kind.LEDGER:
                blocks.append(item)
            elif item is not None:
                self.garbage.items.append(item)
        for place, held in unsure.items():
            self.garbage.items += self._shards(place, held)
        self._weigh(blocks)
        self.garbage.items += self._uploads()
        gone = {item.path for item in self.garbage.items}
        own = [entry for entry in self.entries if entry.path not in gone and self._is_own(entry.path)]
        self.garbage.files, self.garbage.bytes = len(own), sum(entry.size for entry in own)

    def _item(self, entry: Entry, unsure: dict[str, list[Entry]]) -> Item | None:
        """The object as garbage; None where it is needed or no business of ours. Shards come into ``unsure``."""
        parts = entry.path.split("/")
        if entry.path.startswith((f"{TEMPORARY}/", f"{PROBE}/")):
            old = self.now - entry.modified > GRACE_SECONDS
            return self._of(entry, Kind.LEFTOVERS, parts[1], "left by a process that was killed") if old else None
        if entry.path.startswith(f"{RUNNING}/"):
            over = parts[-1].removesuffix(".json") not in {note.run_id for note in self.garbage.at_work}
            return self._of(entry, Kind.LEFTOVERS, parts[1], "note of a run that was killed") if over else None
        if "/".join(parts[:2]) in self.needed.folders and not entry.path.endswith(".parquet"):
            self.garbage.foreign.append(entry.path)
            return None
        if self.needed.newer(entry):
            return None
        if entry.path.startswith((f"{RUNS}/", f"{REPORTS}/")):
            kind = Kind.RUNS if entry.path.startswith(RUNS) else Kind.REPORTS
            dropped = parts[-1].rsplit(".", 1)[0] not in self.needed.runs
            return self._of(entry, kind, parts[1], "of no kept version; it quotes texts") if dropped else None
        if entry.path.startswith(f"{LEDGER}/") and len(parts) == 5:
            return self._block(entry, parts[2], parts[3])
        if entry.path.startswith((f"{RECORDS}/", f"{MANIFESTS}/", f"{QUARANTINE}/")) and len(parts) == 5:
            return self._told(entry, f"{parts[2]}/{parts[3]}", parts[1])
        hidden = parts[0] == HIDDEN
        if len(parts) == (4 if hidden else 3) and _MARK.fullmatch(parts[-2]) and parts[1] not in ("cards", "resolved"):
            place = f"{parts[-3]}/{parts[-2]}"
            if entry.path not in self.needed.paths and place not in self.needed.whole:
                unsure.setdefault("/".join(parts[:-1]), []).append(entry)
        return None

    def _told(self, entry: Entry, place: str, area: str) -> Item | None:
        """A record, a manifest, or a quarantine file."""
        if place in self.needed.whole or entry.path in self.needed.paths:
            return None
        known = place in self.needed.keys
        if area == "quarantine":
            return self._of(entry, Kind.QUARANTINE, place, self._why(place))
        if area == "records" and entry.path.rsplit("/", 1)[-1].split("-")[0] in self.needed.keys.get(place, ()):
            return None
        return self._of(entry, Kind.RECORDS, place, "of earlier inputs" if known else self._why(place))

    def _why(self, place: str) -> str:
        return "of earlier inputs" if place in self.needed.keys else "of no kept version"

    def _shards(self, data: str, held: list[Entry]) -> Iterator[Item]:
        """Garbage among the files of one stage folder: what a record claims, or a footer says is winnow's."""
        stage, mark = data.split("/")[-2:]
        folder = Folder(stage, mark, hidden=data.startswith(f"{HIDDEN}/"))
        records = read_records(self.store, folder)
        claimed = {record.path: record for record in records}
        gone = superseded(records, self.standing)
        with ThreadPoolExecutor(READERS) as pool:
            footers = list(pool.map(lambda one: None if one.path in claimed else _footer(self.store, one), held))
        for entry, footer in zip(held, footers, strict=True):
            record = claimed.get(entry.path)
            place = f"{stage}/{mark}"
            if record is not None:
                why = "superseded by a retry" if record.key in gone else self._why(place)
                yield self._of(entry, Kind.SHARDS, place, why)
            elif footer is not None and entry.path == folder.file(footer.name, footer.key) and footer.stage == stage:
                why = "without a record: its run was killed" if place in self.needed.keys else self._why(place)
                yield self._of(entry, Kind.SHARDS, place, why)
            elif records or place in self.needed.folders:
                self.garbage.foreign.append(entry.path)

    def _block(self, entry: Entry, mark: str, content: str) -> Item | None:
        needed = self.needed
        if not self.garbage.kept:
            return None
        if content not in needed.contents:
            return self._of(entry, Kind.LEDGER, f"ledger/{mark}", ORPHANED)
        if needed.every_ledger or mark in needed.ledgers:
            return None
        return self._of(entry, Kind.LEDGER, f"ledger/{mark}", "of another model or sampling")

    def _weigh(self, blocks: list[Item]) -> None:
        """Says how many tokens each block holds, and keeps those that only another model would have to make again."""
        with ThreadPoolExecutor(READERS) as pool:
            for item, tokens in zip(blocks, pool.map(lambda one: _tokens(self.store, one.path), blocks), strict=True):
                item.tokens = tokens
                keep = item.reason != ORPHANED and not self.ledgers
                (self.garbage.ledgers if keep else self.garbage.items).append(item)

    def _uploads(self) -> list[Item]:
        old: list[Upload] = []
        try:
            old = [one for one in unfinished_uploads(self.store) if self._left(one)]
        except StoreError as error:
            self.garbage.notes.append(f"unfinished uploads cannot be listed: {error}")
        why = "parts of an upload that was never finished"
        return [
            Item(path=one.path, kind=Kind.LEFTOVERS, place="uploads", reason=why, bytes=one.bytes, upload=one.id)
            for one in old
        ]

    def _left(self, upload: Upload) -> bool:
        """Whether it is old, and to a place where only winnow writes: below the root others may be uploading."""
        parts = upload.path.split("/")
        own = parts[0] == HIDDEN or (len(parts) == 3 and bool(_MARK.fullmatch(parts[1])))
        return own and self.now - upload.began > GRACE_SECONDS

    def _is_own(self, path: str) -> bool:
        parts = path.split("/")
        return parts[0] == HIDDEN or "/".join(parts[:2]) in self.needed.folders

    def _of(self, entry: Entry, kind: Kind, place: str, reason: str) -> Item:
        return Item(path=entry.path, kind=kind, place=place, reason=reason, bytes=entry.size)


def _footer(store: Store, entry: Entry) -> Footer | None:
    """What the file's footer says, None where it is not winnow's."""
    try:
        with store.fs.open(store.absolute(entry.path), "rb") as stream:
            raw = (pq.read_metadata(stream).metadata or {}).get(FOOTER)
        return None if raw is None else Footer.model_validate_json(raw)
    except (ValueError, OSError):  # no Parquet, another winnow's: not ours to judge
        return None


def _tokens(store: Store, path: str) -> int:
    with store.fs.open(store.absolute(path), "rb") as stream:
        return sum(pq.read_table(stream, columns=["completion_tokens"]).column(0).to_pylist())
