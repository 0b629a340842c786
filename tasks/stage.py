"""Runs one stage over one dataset version: what is finished is found by its records, the rest goes to workers.

The four files from a shard's URL to its committed record: this one (which shards, which workers),
:mod:`tasks.aligned` (reading), the shape's worker (:mod:`tasks.annotate`, :mod:`tasks.rewrite`, :mod:`tasks.build`)
and :mod:`tasks.commit`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from operators.base import Resources
from tasks.aligned import units
from tasks.attempt import retire
from tasks.dataset import Dataset, Folder
from tasks.executor import Effort, Policy, Pool, Worker, run_units
from tasks.local_executor import LocalPool
from tasks.logs import about, event
from tasks.pending import Retry, explained, finished_shards, to_do
from tasks.progress import Meter, Progress
from tasks.quarantine import RECOVERED
from tasks.records import Record, compact, read_known, uncollected
from tasks.store import Store
from tasks.summary import Accounts, Failure, Shape, StageSummary, Status

REPORT_SECONDS = 1.0


class Executor(StrEnum):
    """Where workers run: threads of this process, or actors on Ray."""

    LOCAL = "local"
    RAY = "ray"


@dataclass(frozen=True, slots=True)
class Execution:
    """How work is carried out; nothing here ever changes a byte of output. ``workers`` 0: as many as fit."""

    executor: Executor = Executor.RAY
    workers: int = 0
    policy: Policy = field(default_factory=Policy)

    def pool(self, resources: Resources) -> Pool:
        if self.executor is Executor.LOCAL:
            return LocalPool(self.policy)
        from tasks.ray_executor import RayPool  # Ray is slow to import, and a local run does not need it

        return RayPool(resources)


class Bounds:
    """What ends a run early and in order: a deadline, a token budget, a signal. Shared by all stages of a run."""

    def __init__(self, until: float | None = None, max_tokens: int | None = None) -> None:
        self._deadline: float | None = None
        self._tokens_left: int | None = None
        self._asked = threading.Event()
        self.reason = ""
        self.limit(until, max_tokens)

    def limit(self, until: float | None, max_tokens: int | None) -> None:
        """``until``: seconds since the epoch; ``max_tokens``: generated tokens. None leaves either open."""
        self._deadline = None if until is None else time.monotonic() + max(0.0, until - time.time())
        self._tokens_left = max_tokens

    def stop(self, reason: str) -> None:
        """Asks the run to drain. Safe in a signal handler."""
        self.reason = self.reason or reason
        self._asked.set()

    def reached(self, effort: Effort) -> bool:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.stop("--until was reached")
        # a stage that generates nothing is never stopped for what another one has spent
        if self._tokens_left is not None and effort.tokens and effort.tokens >= self._tokens_left:
            self.stop("--max-tokens was reached")
        return self._asked.is_set()

    @property
    def asked(self) -> bool:
        """Whether the run is to end."""
        return self._asked.is_set()

    def spend(self, tokens: int) -> None:
        if self._tokens_left is not None:
            self._tokens_left = max(0, self._tokens_left - tokens)


@dataclass(frozen=True)
class Stage:
    """One operator over one or more aligned datasets, ready to run. ``identity``: what its fingerprint stands for.

    ``workers``: how many where nobody asks for a number; 0: as many as fit.
    """

    folder: Folder
    shape: Shape
    operator: str
    version: str
    inputs: tuple[Dataset, ...]
    worker: Worker
    resources: Resources = field(default_factory=Resources)
    identity: dict[str, Any] = field(default_factory=dict)
    workers: int = 0


@dataclass(frozen=True)
class StageResult:
    """What a stage left: its dataset (finished shards alone), its summary and its records by shard name."""

    dataset: Dataset
    summary: StageSummary
    records: dict[str, Record]

    def contents(self) -> dict[str, str]:
        """Content hash of each base shard, learnt while it was read."""
        return {name: one.inputs[0].content_id.split(":", 1)[0] for name, one in self.records.items()}


def run_stage(
    stage: Stage,
    output: Store,
    execution: Execution,
    bounds: Bounds | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    retry: Retry | None = None,
) -> StageResult:
    """Brings the stage up to date and compacts its records. Failed shards are in the summary, never hidden.

    ``retry``: the rows that were quarantined are done as well, those of a shard in an attempt that supersedes it.

    Raises SetupFailed where no worker can be set up, StoreError where the store refuses.
    """
    with about(stage=stage.folder.stage):
        return _run_stage(stage, output, execution, bounds or Bounds(), on_progress, retry)


def _run_stage(
    stage: Stage,
    output: Store,
    execution: Execution,
    bounds: Bounds,
    on_progress: Callable[[Progress], None],
    retry: Retry | None,
) -> StageResult:
    began = time.monotonic()
    if retry is not None:
        retry.check(stage.folder, stage.shape)
    with uncollected():
        work = units(stage.inputs)
        standing = {entry.path: entry.size for entry in output.entries(stage.folder.data)}

        def enough(records: Collection[Record]) -> bool:
            return retry is None and explained(records, standing, work, stage.folder)

        on_record = read_known(output, stage.folder, enough=enough)
        known = on_record.records
        found = finished_shards(known, standing, work)
        todo, again = to_do(work, found, known, standing, retry)
    stood = {name: found.pop(name) for name in again}
    before = len(found)
    effort = Effort()
    whole = {unit.name for unit in work}
    failures = [
        Failure(shard=shard.name, error="an input of this stage is missing: it failed upstream", attempts=0)
        for shard in stage.inputs[0].shards
        if shard.name not in whole
    ]
    made: list[Record] = []
    waiting = 0

    meter = Meter(stage.folder.stage, todo, len(stage.inputs[0].shards), before, len(failures))

    def report(status: Status | None = None) -> None:
        on_progress(meter.progress(effort, status))

    told = f"{stage.folder.stage}: {len(todo)} shards to do, {before} found finished"
    event("stage_began", told, shards=len(stage.inputs[0].shards), found=before, todo=len(todo))
    report()
    if todo:
        pool = execution.pool(stage.resources)
        last = time.monotonic()

        def stop(effort: Effort) -> bool:
            nonlocal last
            if time.monotonic() - last >= REPORT_SECONDS:
                last = time.monotonic()
                report()
            if effort.ending:
                bounds.stop(effort.ending)
            return bounds.reached(effort)

        policy = _policy(execution, pool, stage, len(todo))
        for outcome in run_units(pool, stage.worker, todo, policy, effort, stop):
            if outcome.value is not None:
                found[outcome.unit.name] = outcome.value
                made.append(outcome.value)
                meter.finished(outcome.unit.name, outcome.value)
            elif outcome.error:
                failures.append(Failure(shard=outcome.unit.name, error=outcome.error, attempts=outcome.attempts))
                if outcome.unit.name in stood:  # what stood before the retry still does
                    found[outcome.unit.name] = stood[outcome.unit.name]
                meter.failed(outcome.unit.name)
            else:
                waiting += 1
    bounds.spend(effort.tokens)
    records = [found[unit.name] for unit in work if unit.name in found]
    version = ""
    if records and not waiting and not failures:
        with uncollected():
            version = compact(output, stage.folder, records, on_record, made)
    retire(output, stage.folder, [*known, *made], {**standing, **{record.path: record.bytes for record in made}})
    accounts = Accounts.total(record.accounts for record in records)
    summary = StageSummary(
        name=stage.folder.stage,
        shape=stage.shape,
        operator=stage.operator,
        version=stage.version,
        fingerprint=stage.folder.fingerprint,
        folder=stage.folder.data,
        dataset_version=version,
        status=Status.FAILED if failures else Status.BOUNDED if waiting else Status.DONE,
        shards_before=before + sum(record.adopted for record in made),
        shards_made=sum(not record.adopted for record in made),
        failures=failures,
        accounts=accounts,
        made=Accounts.total(record.accounts for record in made if not record.adopted),
        seconds=round(time.monotonic() - began, 3),
        setup_seconds=round(effort.setup_seconds, 3),
        busy_share=round(effort.busy_share, 4),
        workers=effort.workers,
        notes={**_notes(made, waiting), **effort.spent},
        identity=stage.identity,
    )
    report(summary.status)
    _ended(summary, meter.progress(effort, summary.status))
    shards = tuple(record.shard() for record in records)
    dataset = Dataset(output, shards, mark=stage.folder.fingerprint)
    return StageResult(dataset, summary, {record.name: record for record in records})


def _ended(summary: StageSummary, progress: Progress) -> None:
    """The stage's last event: its accounts as the report has them, and what this run spent."""
    accounts = summary.accounts
    told = (
        f"{summary.name}: {summary.status.value}, {summary.shards_made} shards made, {summary.shards_before} found, "
        f"{len(summary.failures)} failed; {accounts.rows_in} rows in, {accounts.quarantined} quarantined"
    )
    event(
        "stage_ended",
        told,
        logging.INFO if summary.status is Status.DONE else logging.WARNING,
        status=summary.status.value,
        fingerprint=summary.fingerprint,
        shards_made=summary.shards_made,
        shards_found=summary.shards_before,
        shards_failed=len(summary.failures),
        accounts=accounts.model_dump(exclude={"reasons"}),
        closed=accounts.closed(),
        tokens=progress.tokens,
        ledger_hits=progress.ledger_hits if "requests" in progress.notes else None,
        spent=dict(progress.spent) or None,
        retries=progress.retries,
        workers_lost=progress.lost,
        busy_share=summary.busy_share,
        seconds=summary.seconds,
    )


def _policy(execution: Execution, pool: Pool, stage: Stage, todo: int) -> Policy:
    fits = pool.capacity(stage.resources.cpus, stage.resources.gpus)
    if fits < 1:
        raise ValueError(
            f"{stage.folder.stage}: a worker wants {stage.resources.cpus:g} CPUs and {stage.resources.gpus:g} GPUs, "
            "and no machine here has them; lower its resources or join a larger cluster"
        )
    most = fits if pool.name == "ray" else execution.workers or 1
    wanted = min(execution.workers or stage.workers or fits, most, todo)
    policy = execution.policy
    return Policy(
        workers=max(1, wanted),
        retries=policy.retries,
        stall_seconds=policy.stall_seconds,
        setup_seconds=policy.setup_seconds,
        drain_seconds=policy.drain_seconds,
    )


def _notes(made: Sequence[Record], waiting: int) -> dict[str, int]:
    notes: dict[str, int] = {}
    for record in made:
        for key, value in record.notes.items():
            notes[key] = notes.get(key, 0) + value
    adopted = sum(record.adopted and record.notes.get(RECOVERED) != 0 for record in made)
    if adopted:
        notes["shards adopted"] = adopted
    if waiting:
        notes["shards waiting"] = waiting
    return notes
