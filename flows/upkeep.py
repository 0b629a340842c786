"""``winnow retry`` and ``winnow gc``: what an output root needs from time to time, for a person or as JSON."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from flows.cli import CLOSED, OPEN, print_json
from flows.parameters import CurateText
from flows.start import refuse, say, start
from tasks.garbage.find import find_garbage
from tasks.garbage.sweep import refuse_beside_runs, sweep
from tasks.garbage.terminal import print_garbage
from tasks.retry import RetryOutcome, check_unchanged, left_open, outcome, retry_of, run_to_retry
from tasks.store import LISTING_SECONDS, PREFLIGHT_SECONDS, Store, StoreError, within
from tasks.summary import RunSummary, Status
from tasks.terminal import print_summary


def retry(url: str, as_json: bool) -> int:
    """Quarantined rows and failed shards of the last run, with its parameters. 0: all accounts close; 1: rows or shards
    stay open, or nothing changed; 2: refused.
    """
    store = Store(url)
    try:
        run = within(PREFLIGHT_SECONDS, url, lambda: run_to_retry(store))
        if not left_open(run):
            return _nothing_to_retry(run, as_json)
        parameters = _parameters(run, url)
        from flows.curate_text import prepare  # imports Prefect
        from tasks.preflight import Refused

        try:
            source = prepare(parameters).source
        except Refused as error:
            return refuse(str(error))
        within(LISTING_SECONDS, url, lambda: check_unchanged(store, run, source))
    except StoreError as error:
        return refuse(str(error))

    def show(summary: RunSummary, as_json: bool) -> int:
        return _show_retry(outcome(run, summary), summary, as_json)

    return start(parameters, as_json, retry_of(run), show)


def _parameters(run: RunSummary, url: str) -> CurateText:
    """The run's own, from its summary. A time that it was to end by is no bound of the retry once it is over."""
    if run.flow != "curate_text":
        raise StoreError(f"run {run.run_id} is one of {run.flow}, which cannot be retried")
    try:
        held = CurateText.model_validate(run.parameters)
    except ValidationError as error:
        first = error.errors()[0]
        raise StoreError(
            f"run {run.run_id}: its parameters are not those of this winnow ({'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}); run the flow again, then retry"
        ) from error
    over = held.until is not None and held.until.timestamp() <= datetime.now(UTC).timestamp()
    return held.model_copy(update={"output": url, **({"until": None} if over else {})})


def _nothing_to_retry(run: RunSummary, as_json: bool) -> int:
    held = RetryOutcome(retry_of=run.run_id, run_id="", changed=False, stages=[])
    if as_json:
        print_json({"retry": held.model_dump(mode="json"), "run": None})
        return CLOSED
    Console().print(f"nothing to retry: run {run.run_id} left no row in quarantine and no failed shard", soft_wrap=True)
    return CLOSED


def _show_retry(held: RetryOutcome, summary: RunSummary, as_json: bool) -> int:
    code = CLOSED if summary.status is Status.DONE and held.changed else OPEN
    if as_json:
        print_json({"retry": held.model_dump(mode="json"), "run": summary.model_dump(mode="json")})
        return code
    console = Console()
    print_summary(summary, console)
    table = Table("stage", "quarantined before", "now", "failed shards before", "now", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for one in held.stages:
        figures = (one.quarantined_before, one.quarantined, one.failed_before, one.failed)
        table.add_row(one.stage, *(f"{figure:,}" for figure in figures))
    console.print(table)
    for one in held.stages:
        for reason, rows in one.reasons.items():
            console.print(f"{one.stage}: {rows:,} rows: {reason}", highlight=False, markup=False, soft_wrap=True)
    if summary.status is Status.BOUNDED:
        told = "the retry was stopped; the same command goes on"
    elif not held.changed:
        told = "the retry changed nothing: the same rows and shards failed again"
    else:
        rows, shards = held.total("quarantined"), held.total("failed")
        told = f"still open: {rows:,} rows in quarantine, {shards:,} failed shards" if rows or shards else "all is done"
    console.print(told, highlight=False)
    return code


def collect_garbage(url: str, delete: bool, keep: int, ledgers: bool, as_json: bool) -> int:
    """What no kept version needs, and with ``delete`` away with it. 0: listed or deleted; 1: not all could be deleted;
    2: refused, as beside a run that is at work.
    """
    store = Store(url)
    try:
        within(PREFLIGHT_SECONDS, url, store.answers)
        found = find_garbage(store, keep, time.time(), ledgers)
        if delete and found.items:
            refuse_beside_runs(store, found)
    except StoreError as error:
        return refuse(str(error))
    problem = ""
    if delete and found.items:
        try:
            errors = Console(stderr=True)
            with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
                task = bar.add_task("deleting", total=len(found.items))
                sweep(store, found, lambda done, total: bar.update(task, completed=done))
        except StoreError as error:
            problem = str(error)
    if as_json:
        print_json({**found.model_dump(mode="json"), "deleted": delete and not problem, "problem": problem})
    else:
        print_garbage(found, delete and not problem, keep, Console())
    if problem:
        say(f"{problem}; the same command goes on")
    return OPEN if problem else CLOSED
