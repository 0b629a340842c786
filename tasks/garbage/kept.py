"""What the latest versions of the corpus need of an output root. Reads runs, manifests and records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import BaseModel, Field

from tasks.corpus import HIDDEN_STAGES
from tasks.dataset import HIDDEN, KEY_LENGTH, Folder
from tasks.records import Record, read_manifest, read_records
from tasks.runs import RUNS
from tasks.store import Entry, Store
from tasks.summary import RunSummary, Shape, StageSummary, Status

CLAIMS = (f"{HIDDEN}/records/", f"{HIDDEN}/manifests/")


class Kept(BaseModel):
    """A version that stays. ``run_id``: the latest run that ended with it."""

    corpus: str
    run_id: str
    started: str
    part: str = Field("", description="What of the input it was made of: shards, dates, limit; empty: all of it.")
    status: Status = Status.DONE


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


def selected(run: RunSummary) -> str:
    """Which part of its input the run was told to take, empty where it was all: ``shards``, dates, ``limit``."""
    asked = {name: run.parameters.get(name) for name in ("shards", "first_date", "last_date", "limit")}
    return " ".join(f"{name}={value}" for name, value in asked.items() if value)


def latest_versions(runs: list[RunSummary], keep: int) -> tuple[dict[str, Kept], str]:
    """Latest run of each version that stays, the newest first; and the run up to which all was looked through.

    Only a corpus of the whole input, by a run that ended well, takes the place of an older one. A backfill, a trial
    with ``limit`` and a failed run are kept beside it, as they say nothing of the shards that they left out. Where
    there is no such corpus, the latest of each part that was asked for stay.
    """
    counted = _newest({version_of(run): run for run in runs if run.status is Status.DONE and not selected(run)}, runs)
    if counted:
        oldest, last = counted[:keep][-1].run_id, counted[0].run_id
        staying = [run for run in runs if run.run_id >= oldest and version_of(run)]
        return _kept(staying), last
    staying, ends = [], []
    for part in dict.fromkeys(selected(run) for run in runs if version_of(run)):
        held = [run for run in runs if selected(run) == part and version_of(run)]
        newest = _newest({version_of(run): run for run in held}, held)[:keep]
        staying += newest
        ends.append(newest[0].run_id)
    return _kept(sorted(staying, key=lambda run: run.run_id)), min(ends, default="")


def _newest(versions: dict[str, RunSummary], runs: list[RunSummary]) -> list[RunSummary]:
    """The latest run of each version, the newest first."""
    return [run for run in reversed(runs) if version_of(run) and versions.get(version_of(run)) is run]


def _kept(runs: list[RunSummary]) -> dict[str, Kept]:
    found: dict[str, Kept] = {}
    for run in reversed(runs):
        held = Kept(corpus=run.corpus, run_id=run.run_id, started=run.started, part=selected(run), status=run.status)
        found.setdefault(version_of(run), held)
    return found


def needed_by(store: Store, runs: list[RunSummary], kept: dict[str, Kept], last: str, entries: list[Entry]) -> Needed:
    """What these versions need, and whatever is newer than the run ``last``. Raises StoreError for what cannot be read.

    Newer by the store's clock too: a run that began before it and ended after it, or on a machine whose clock is slow.
    """
    needed = Needed()
    latest = {version.run_id for version in kept.values()}
    summaries = {entry.path: entry for entry in entries if entry.path.startswith(f"{RUNS}/")}
    if ended := summaries.get(f"{RUNS}/{last}.json"):
        needed.since = ended.modified
    for run in runs:
        summary = summaries.get(f"{RUNS}/{run.run_id}.json")
        is_open = run.run_id > last or summary is None or needed.newer(summary)
        if is_open or version_of(run) in kept:
            needed.runs.add(run.run_id)
        if is_open or run.run_id in latest:
            for stage in run.stages:
                _stage(store, stage, is_open, needed)
    _newer(store, [entry for entry in entries if entry.path.startswith(CLAIMS)], needed)
    return needed


def _newer(store: Store, claims: list[Entry], needed: Needed) -> None:
    """What records and manifests name that stay because they are new, as of a run that was killed: it may be older."""
    old = {entry.path for entry in claims if not needed.newer(entry)}
    for path in {entry.path.rsplit("/", 1)[0] for entry in claims if entry.path not in old}:
        _, _, stage, mark = path.split("/")
        folder = Folder(stage, mark, hidden=stage.startswith(HIDDEN_STAGES))
        needed.folders.setdefault(place_of(folder), folder)
        needed.takes(read_records(store, folder, left_out=old), folder)


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
