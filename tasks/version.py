"""One version of what stands at an output root: a run that ended, its stages, and the records of their shards."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from tasks.dataset import HIDDEN, Folder
from tasks.records import Record, read_manifest, read_records
from tasks.runs import RUNS, load_run, run_ids
from tasks.store import PREFLIGHT_SECONDS, Store, StoreError, within
from tasks.summary import RunSummary, Shape, StageSummary, Status

_NAMED = re.compile(r"^(?P<url>.+)@(?P<run>\d{8}T\d{6}-[0-9a-f]{6})$")
PREVIOUS = "@previous"
SCATTER, GATHER = "Scatter", "Gather"


@dataclass(frozen=True)
class StageVersion:
    """One stage as one run left it."""

    store: Store
    summary: StageSummary

    @property
    def name(self) -> str:
        return self.summary.name

    @property
    def folder(self) -> Folder:
        return Folder(self.summary.name, self.summary.fingerprint, hidden=self.summary.folder.startswith(HIDDEN))

    @cached_property
    def records(self) -> dict[str, Record]:
        """Records by shard name, read from storage at first use. Raises StoreError where they were removed.

        Of a stage that was not finished: every record that there is, of which later runs may have made some.
        """
        if not self.summary.dataset_version:
            every = sorted(read_records(self.store, self.folder), key=lambda record: record.attempt)
            return {record.name: record for record in every}
        found = read_manifest(self.store, self.folder, self.summary.dataset_version)
        if found is None:
            raise StoreError(
                f"{self.store.url_of(self.folder.manifests)}: the records of this version are gone; "
                "the same command again makes them anew"
            )
        return self._standing({record.name: record for record in found.records})

    def _standing(self, recorded: dict[str, Record]) -> dict[str, Record]:
        """In place of a shard that a retry superseded and removed, the one that came of the retry."""
        there = {entry.path for entry in self.store.entries(self.folder.data)}
        if all(record.path in there for record in recorded.values()):
            return recorded
        later = {one.supersedes: one for one in read_records(self.store, self.folder) if one.supersedes}
        for name, record in recorded.items():
            while record.path not in there and record.key in later:
                record = later[record.key]
            recorded[name] = record
        return recorded


@dataclass(frozen=True)
class Version:
    """A run with its stages in the order in which they ran. ``later``: a newer run that ended otherwise than well."""

    store: Store
    run: RunSummary
    later: RunSummary | None = None

    @property
    def named(self) -> str:
        return f"{self.store.url}@{self.run.run_id}"

    @cached_property
    def stages(self) -> dict[str, StageVersion]:
        return {one.name: StageVersion(self.store, one) for one in self.run.stages}

    @property
    def seed(self) -> int:
        """What every draw of the build was made with."""
        for stage in self.stages.values():
            if stage.summary.operator == SCATTER and "seed" in stage.summary.identity:
                return int(stage.summary.identity["seed"])
        return int(self.run.parameters.get("seed") or 0)

    @property
    def gather(self) -> StageVersion | None:
        """The stage that wrote the corpus; None where the run came to none, or to one with a hole."""
        for stage in self.stages.values():
            if stage.summary.operator == GATHER and stage.summary.dataset_version:
                return stage
        return None

    def of_shape(self, shape: Shape) -> Iterator[StageVersion]:
        return (stage for stage in self.stages.values() if stage.summary.shape is shape)


def open_version(spec: str) -> Version:
    """``URL@RUN_ID``; or ``URL``: its newest run that ended well or made a corpus, else its newest; or
    ``URL@previous``: the newest one before it whose corpus is another.

    Raises StoreError where there is none.
    """
    named = _NAMED.match(spec)
    store = Store(named["url"] if named else spec.removesuffix(PREVIOUS))
    ids = within(PREFLIGHT_SECONDS, store.url, lambda: run_ids(store))
    if not ids:
        raise StoreError(f"{store.url}: no run has ended here; give the --output of one, or wait for it")
    if named:
        if named["run"] not in ids:
            last = ", ".join(ids[-3:])
            raise StoreError(f"{store.url}: there is no run {named['run']}; the last ones are {last} ({RUNS})")
        return Version(store, load_run(store, named["run"]))
    newest = load_run(store, ids[-1])
    good = _good(store, newest, ids)
    last_good = next(good, None)
    if spec.endswith(PREVIOUS):
        before = next((run for run in good if last_good is None or run.corpus != last_good.corpus), None)
        if before is None:
            raise StoreError(f"{store.url}: there is no version before the last one")
        return Version(store, before)
    if last_good is None or last_good is newest:
        return Version(store, newest)
    return Version(store, last_good, later=newest)


def _good(store: Store, newest: RunSummary, ids: Sequence[str]) -> Iterator[RunSummary]:
    """Runs that ended well or made a corpus, the newest first."""
    for number in reversed(range(len(ids))):
        run = newest if number == len(ids) - 1 else load_run(store, ids[number])
        if run.stages and (run.status is Status.DONE or run.corpus):
            yield run
