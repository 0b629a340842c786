"""What the last run left undone, whether it can be retried alone, and what a retry made of it. Writes nothing."""

from __future__ import annotations

from pydantic import BaseModel, Field

from tasks.dataset import Dataset, Folder
from tasks.pending import Retry
from tasks.records import read_records
from tasks.runs import last_run, load_run
from tasks.store import Store, StoreError
from tasks.summary import RunSummary, StageSummary, Status


class StageRetry(BaseModel):
    """One stage before and after a retry: rows in quarantine, shards that failed."""

    stage: str
    quarantined_before: int
    quarantined: int
    failed_before: int
    failed: int
    reasons: dict[str, int] = Field(default_factory=dict, description="Why rows are still quarantined.")


class RetryOutcome(BaseModel):
    """``changed``: whether any row or shard is done that was not before."""

    retry_of: str = Field(description="The run that was retried.")
    run_id: str = Field(description="The retry, which is a run of its own.")
    changed: bool
    stages: list[StageRetry]

    def total(self, what: str) -> int:
        return sum(int(getattr(stage, what)) for stage in self.stages)


def run_to_retry(store: Store) -> RunSummary:
    """The last run; of a retry that was cut off, the run that it retried. Raises StoreError where there is none, and
    where the last run never came to its end: what is missing then is more than what failed.
    """
    run = last_run(store)
    if run is None:
        raise StoreError(f"{store.url}: no run has ended here; give the --output of one, or wait for it")
    while run.retry_of and (run.crashed or run.status is Status.BOUNDED):
        run = load_run(store, run.retry_of)
    if run.crashed or run.status is Status.BOUNDED:
        why = run.messages[-1] if run.messages else run.status.value
        raise StoreError(f"run {run.run_id} did not come to its end ({why}); finish it first, by its own command")
    return run


def failed(stage: StageSummary) -> set[str]:
    """Names of the shards that failed in the stage itself, and not upstream of it."""
    return {one.shard for one in stage.failures if one.attempts}


def left_open(run: RunSummary) -> bool:
    return any(stage.accounts.quarantined or failed(stage) for stage in run.stages)


def retry_of(run: RunSummary) -> Retry:
    return Retry(run.run_id, {stage.name: stage.fingerprint for stage in run.stages})


def check_unchanged(store: Store, run: RunSummary, source: Dataset) -> None:
    """Raises StoreError where the input holds shards that ``run`` did not know as they are now, apart from those that
    failed: a retry does what was left, and a changed input is work of its own.
    """
    first = run.stages[0]
    records = read_records(store, Folder(first.name, first.fingerprint))
    # a shard that was edited has records of what it was, too
    rows = {(record.name, record.inputs[0].token): record.rows for record in records}
    changed = [
        shard.name
        for shard in source.shards
        if (shard.name, shard.token) not in rows and shard.name not in failed(first)
    ]
    advice = "run the flow again first, then retry what it left"
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise StoreError(f"{changed[0]}{more}: new or changed since run {run.run_id}; {advice}")
    lacking = first.accounts.rows_in - sum(rows.get((shard.name, shard.token), 0) for shard in source.shards)
    if lacking > 0 and not failed(first):
        raise StoreError(f"{run.input}: shards with {lacking:,} rows are gone since run {run.run_id}; {advice}")


def outcome(before: RunSummary, after: RunSummary) -> RetryOutcome:
    """What the retry ``after`` made of ``before``."""
    old, new = ({stage.name: stage for stage in run.stages} for run in (before, after))
    stages = []
    for name in dict.fromkeys([*old, *new]):
        pair = [held.get(name) for held in (old, new)]
        rows = [one.accounts.quarantined if one else 0 for one in pair]
        shards = [len(failed(one)) if one else 0 for one in pair]
        if any(rows) or any(shards):
            reasons = pair[1].accounts.reasons if pair[1] and rows[1] else {}
            stages.append(
                StageRetry(
                    stage=name,
                    quarantined_before=rows[0],
                    quarantined=rows[1],
                    failed_before=shards[0],
                    failed=shards[1],
                    reasons=dict(sorted(reasons.items(), key=lambda pair: -pair[1])[:3]),
                )
            )
    changed = any(_state(old[name]) != _state(new[name]) for name in old.keys() & new.keys())
    return RetryOutcome(retry_of=before.run_id, run_id=after.run_id, changed=changed, stages=stages)


def _state(stage: StageSummary) -> tuple[str, int, frozenset[str]]:
    return stage.dataset_version, stage.accounts.quarantined, frozenset(failed(stage))
