"""One Prefect task a stage: runs it, shows its progress, leaves its accounts as a table. Never a task a shard."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from queue import Queue
from threading import Lock, Thread
from typing import Any, cast
from uuid import UUID

from prefect import task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from tasks.observe import Observer, observer
from tasks.stage import Execution, Progress, Stage, StageResult, run_stage
from tasks.store import Store
from tasks.summary import RunSummary, StageSummary, Status

UPDATE_SECONDS = 2.0
PATIENCE_SECONDS = 10.0


class _Notes:
    """Tells Prefect from a thread of its own, so that an API that is slow or gone costs the run nothing.

    Only the latest progress is kept. The first call that fails is logged once, and Prefect is left alone from then on.
    """

    def __init__(self, watching: Observer) -> None:
        self._watching = watching
        self._calls: Queue[Callable[[], object] | None] = Queue()
        self._lock = Lock()
        self._share: float | None = None
        self._artifact: UUID | None = None
        context = copy_context()  # artifacts find their run in it
        self._thread = Thread(target=context.run, args=(self._work,), daemon=True, name="winnow-prefect")
        self._thread.start()

    def progress(self, stage: str, share: float) -> None:
        with self._lock:
            waiting, self._share = self._share is not None, share
        if not waiting:
            self._calls.put(lambda: self._progress(stage))

    def leave(self, call: Callable[..., object], **arguments: Any) -> None:
        self._calls.put(partial(call, **arguments))

    def close(self) -> None:
        """Waits for what is under way, and not for long."""
        self._calls.put(None)
        self._thread.join(PATIENCE_SECONDS)
        if self._thread.is_alive():
            self._lost(f"no answer within {PATIENCE_SECONDS:.0f} s")

    def _progress(self, stage: str) -> None:
        with self._lock:
            share, self._share = self._share or 0.0, None
        if self._artifact is None:
            description = f"{stage}: shards finished"
            key = _key(stage, "progress")
            self._artifact = cast(UUID, create_progress_artifact(progress=share, key=key, description=description))
        else:
            update_progress_artifact(artifact_id=self._artifact, progress=share)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._watching.prefect_lost:
                continue
            try:
                call()
            except Exception as error:  # whatever a client raises, the data is worth more than its picture
                self._lost(" ".join(str(error).split()) or type(error).__name__)

    def _lost(self, why: str) -> None:
        if not self._watching.prefect_lost:
            self._watching.prefect_lost = True
            logging.getLogger("winnow").warning("Prefect is left alone from here, the run goes on: %s", why)


def stage_task(stage: Stage, output: Store, execution: Execution) -> StageResult:
    """Runs the stage as a Prefect task of its name; the stage goes on where Prefect fails.

    The stage travels in a closure: as a parameter Prefect would walk through every one of its shards.
    """
    watching = observer()
    results: list[StageResult] = []
    errors: list[Exception] = []

    def body() -> StageResult:
        watching.began = True
        try:
            results.append(_told(stage, output, execution, watching))
        except Exception as error:
            errors.append(error)
            raise
        return results[0]

    try:
        return task(name=stage.folder.stage, cache_policy=NO_CACHE, persist_result=False)(body)()
    except Exception as error:
        if errors:
            raise
        watching.prefect_lost = True
        logging.getLogger("winnow").warning("%s: Prefect failed, the stage goes on: %s", stage.folder.stage, error)
        return results[0] if results else body()


def _told(stage: Stage, output: Store, execution: Execution, watching: Observer) -> StageResult:
    """Runs the stage, and tells the watcher and Prefect of it."""
    notes = _Notes(watching)
    notes.progress(stage.folder.stage, 0.0)
    shown = time.monotonic()

    def on_progress(progress: Progress) -> None:
        nonlocal shown
        watching.on_progress(progress)
        if time.monotonic() - shown >= UPDATE_SECONDS or progress.done == progress.total:
            shown = time.monotonic()
            notes.progress(stage.folder.stage, 100.0 * progress.done / progress.total if progress.total else 100.0)

    try:
        result = run_stage(stage, output, execution, watching.bounds, on_progress)
        _log(result.summary)
        notes.leave(
            create_table_artifact,
            key=_key(stage.folder.stage, "accounts"),
            table=accounts_rows(result.summary),
            description=f"{stage.folder.stage} {stage.folder.fingerprint}",
        )
    finally:
        notes.close()
    return result


def run_artifacts(summary: RunSummary, markdown: str) -> None:
    """The run as markdown, all accounts as one table, and a link to the report: as far as Prefect takes them."""
    notes = _Notes(observer())
    rows = [row for stage in summary.stages for row in accounts_rows(stage)]
    key = _key(summary.flow, "accounts")
    notes.leave(create_table_artifact, key=key, table=rows, description="Accounts of every stage")
    key = _key(summary.flow, "summary")
    notes.leave(create_markdown_artifact, key=key, markdown=markdown, description=summary.status.value)
    if summary.report:
        link = summary.report if "://" in summary.report else f"file://{summary.report}"
        notes.leave(create_link_artifact, key=_key(summary.flow, "report"), link=link, link_text="Report of this run")
    notes.close()


def accounts_rows(stage: StageSummary) -> list[dict[str, Any]]:
    """One row an outcome, then one a status of rows out, then failed shards."""
    accounts = stage.accounts
    rows: list[dict[str, Any]] = [
        {"stage": stage.name, "side": "in", "what": what, "rows": count} for what, count in accounts.outcomes.items()
    ]
    rows += [
        {"stage": stage.name, "side": "out", "what": what, "rows": count} for what, count in accounts.outputs.items()
    ]
    rows += [
        {"stage": stage.name, "side": "failed shard", "what": one.error, "rows": one.shard} for one in stage.failures
    ]
    return rows


def markdown_of(summary: RunSummary) -> str:
    """A short summary for Prefect's artifact page."""
    lines = [
        f"# {summary.flow}: {summary.status.value}",
        "",
        f"`{summary.input}` to `{summary.output}` in {summary.seconds:.0f} s",
        "",
        "| stage | rows in | rows out | quarantined | shards made | shards found | failed |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for stage in summary.stages:
        accounts = stage.accounts
        lines.append(
            f"| {stage.name} | {accounts.rows_in:,} | {accounts.rows_out:,} | {accounts.quarantined:,} | "
            f"{stage.shards_made:,} | {stage.shards_before:,} | {len(stage.failures):,} |"
        )
    lines += ["", *(f"- {message}" for message in summary.messages)]
    return "\n".join(lines)


def _log(stage: StageSummary) -> None:
    text = (
        f"{stage.name} {stage.fingerprint}: {stage.status.value}, {stage.shards_made} shards made, "
        f"{stage.shards_before} found, {len(stage.failures)} failed, {stage.accounts.rows_in} rows in"
    )
    try:
        logger: Any = get_run_logger()
    except MissingContextError:
        logger = logging.getLogger("winnow")
    logger.log(logging.INFO if stage.status is Status.DONE else logging.WARNING, text)


def _key(name: str, what: str) -> str:
    return f"{name}-{what}".replace("_", "-").lower()
