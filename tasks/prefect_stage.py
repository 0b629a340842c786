"""One Prefect task a stage: runs it, shows its progress, leaves its accounts as a table. Never a task a shard."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
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

from tasks.artifacts import accounts_rows, markdown_of, report_link, run_line, stage_line
from tasks.credentials import scrubbing
from tasks.logs import LOG, as_json, on_stderr
from tasks.observe import Observer, observer
from tasks.progress import Progress
from tasks.stage import Execution, Stage, StageResult, run_stage
from tasks.store import Store
from tasks.summary import RunSummary

UPDATE_SECONDS = 2.0
MOST_EVENTS = 20
"""Of one kind in one stage that a Prefect run's log takes."""
PATIENCE_SECONDS = 10.0


class _RunLog(logging.Handler):
    """Writes winnow's events into the log of the Prefect run that they happen in, of each kind and stage a few.

    What is left out there stands in the log of the process and in the summary.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._seen: Counter[tuple[str, str]] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        what, stage = getattr(record, "event", record.msg), getattr(record, "stage", "")
        if what == "progress":
            return  # there is an artifact for it
        try:
            logger = get_run_logger()
        except MissingContextError:
            return
        self._seen[what, stage] += 1
        if self._seen[what, stage] <= MOST_EVENTS:
            said = record.getMessage()
            logger.log(record.levelno, said if not stage or said.startswith(f"{stage}:") else f"{stage}: {said}")
        elif self._seen[what, stage] == MOST_EVENTS + 1:
            logger.warning("%s: further events %r are left out here", stage or "run", what)


@contextmanager
def run_log() -> Iterator[None]:
    """Events of the run inside reach the log of its Prefect run too; as JSON on standard error where that is asked."""
    handler = _RunLog()
    before = LOG.level, LOG.propagate
    with on_stderr() if as_json() else nullcontext():
        LOG.addHandler(handler)
        LOG.setLevel(min(LOG.level or logging.INFO, logging.INFO))
        LOG.propagate = False  # the run's log is shown on the console, and once is enough
        try:
            yield
        finally:
            LOG.removeHandler(handler)
            LOG.level, LOG.propagate = before


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
    watching, name = observer(), stage.folder.stage
    results: list[StageResult] = []
    errors: list[Exception] = []

    def body() -> StageResult:
        watching.began = True
        try:
            with scrubbing():  # Prefect keeps what an error says
                results.append(_told(stage, output, execution, watching))
        except Exception as error:
            errors.append(error)
            raise
        return results[0]

    try:
        return task(name=name, task_run_name=name, cache_policy=NO_CACHE, persist_result=False)(body)()
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
        watching.hears(progress)
        if time.monotonic() - shown >= UPDATE_SECONDS or progress.done == progress.total:
            shown = time.monotonic()
            notes.progress(stage.folder.stage, 100.0 * progress.done / progress.total if progress.total else 100.0)

    try:
        result = run_stage(stage, output, execution, watching.bounds, on_progress, watching.retry)
        notes.leave(
            create_table_artifact,
            key=_key(stage.folder.stage, "accounts"),
            table=accounts_rows(result.summary),
            description=f"{stage_line(result.summary)}; folder {result.summary.folder}",
        )
    finally:
        notes.close()
    return result


def run_artifacts(summary: RunSummary) -> None:
    """The run as markdown, all accounts as one table, and a link to the report: as far as Prefect takes them."""
    notes = _Notes(observer())
    rows = [row for stage in summary.stages for row in accounts_rows(stage)]
    key = _key(summary.flow, "accounts")
    notes.leave(create_table_artifact, key=key, table=rows, description="Where every row went, by stage")
    key = _key(summary.flow, "summary")
    notes.leave(create_markdown_artifact, key=key, markdown=markdown_of(summary), description=run_line(summary))
    if summary.report:
        key = _key(summary.flow, "report")
        about = f"Charts, samples and accounts of run {summary.run_id}; it lies at {summary.report}"
        notes.leave(
            create_link_artifact, key=key, link=report_link(summary), link_text="Open the report", description=about
        )
    notes.close()


def _key(name: str, what: str) -> str:
    return f"{name}-{what}".replace("_", "-").lower()
