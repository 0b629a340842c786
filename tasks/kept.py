"""What the latest versions of the corpus need of an output root. Reads runs, manifests and records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import BaseModel

from tasks.dataset import HIDDEN, KEY_LENGTH, Folder
from tasks.records import Record, read_manifest, read_records
from tasks.runs import RUNS
from tasks.store import Entry, Store
from tasks.summary import RunSummary, Shape, StageSummary


class Kept(BaseModel):
    """A version that stays. ``run_id``: the latest run that ended with it."""

    corpus: str
    run_id: str
    started: str


@dataclass
class Needed:
    """``whole``: folders of which everything stays. ``since``: newer objects are of a version still to come."""

    since: float = 0.0
    paths: set[str] = field(default_factory=set)
    keys: dict[str, set[str]] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)
    contents: set[str] = field(default_factory=set)
    ledgers: set[str] = field(default_factory=set)
    every_ledger: bool = False
    folders: dict[str, Folder] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def newer(self, entry: Entry) -> bool:
        return not entry.modified or entry.modified > self.since

    def takes(self, records: Iterable[Record], folder: Folder) -> None:
        for record in records:
            self.paths |= {record.path, record.quarantine}
            self.keys.setdefault(place_of(folder), set()).add(record.key[:32])
            self.contents |= {one.content_id.split(":", 1)[0][:KEY_LENGTH] for one in record.inputs}


def place_of(folder: Folder) -> str:
    return f"{folder.stage}/{folder.fingerprint}"


def version_of(run: RunSummary) -> str:
    """Fingerprint of the corpus that the run ended with, empty where it came to none."""
    return run.corpus.rstrip("/").rsplit("/", 1)[-1]


def folder_of(stage: StageSummary) -> Folder:
    return Folder(stage.name, stage.fingerprint, hidden=stage.folder.startswith(f"{HIDDEN}/"))


def latest_versions(runs: list[RunSummary], keep: int) -> dict[str, Kept]:
    """Latest run of each of the latest versions, the newest first."""
    found: dict[str, Kept] = {}
    for run in reversed(runs):
        corpus = version_of(run)
        if corpus and corpus not in found and len(found) < keep:
            found[corpus] = Kept(corpus=run.corpus, run_id=run.run_id, started=run.started)
    return found


def needed_by(store: Store, runs: list[RunSummary], kept: dict[str, Kept], entries: list[Entry]) -> Needed:
    """What these versions need, and the runs after them. Raises StoreError for what cannot be read."""
    needed = Needed()
    latest = {version.run_id for version in kept.values()}
    last = max(latest, default="")
    for entry in entries:
        if entry.path == f"{RUNS}/{last}.json":
            needed.since = entry.modified
    for run in runs:
        is_open = run.run_id > last
        if is_open or version_of(run) in kept:
            needed.runs.add(run.run_id)
        if is_open or run.run_id in latest:
            for stage in run.stages:
                _stage(store, stage, is_open, needed)
    return needed


def _stage(store: Store, stage: StageSummary, is_open: bool, needed: Needed) -> None:
    folder = folder_of(stage)
    place = place_of(folder)
    needed.folders[place] = folder
    if stage.shape is Shape.REWRITE:
        mark = stage.identity.get("ledger")
        needed.ledgers.add(str(mark))
        needed.every_ledger = needed.every_ledger or not mark
    manifest = read_manifest(store, folder, stage.dataset_version) if stage.dataset_version and not is_open else None
    if manifest is not None:
        needed.paths.add(f"{folder.manifests}/{stage.dataset_version}.json")
        needed.takes(manifest.records, folder)
        return
    if place not in needed.whole:
        needed.whole.add(place)
        needed.takes(read_records(store, folder), folder)
        if not is_open:
            why = "its last run left failed shards" if stage.failures else "its manifest is gone"
            needed.notes.append(f"{stage.name}: {why}, so all shards of its folder stay; run the flow to a good end")
