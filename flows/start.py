"""Starts a flow from the command line: preflight, Prefect, signals, progress display, summary, exit code."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from flows.cli import CLOSED, OPEN, REFUSED, print_json
from flows.display import StageDisplay
from flows.parameters import CurateText
from flows.prefect_server import NoServer, prefect_api
from flows.signals import drained_by_signals
from tasks import logs
from tasks.observe import Observer, watched_by
from tasks.pending import Retry
from tasks.preflight import Refused
from tasks.stage import Bounds
from tasks.store import StoreError
from tasks.summary import RunSummary, Status
from tasks.terminal import print_summary

# Set before Prefect is imported: nothing is sent anywhere, a server that is gone is given up after 6 s and not after a
# minute a call, and what a person reads here is winnow's own display and its own one-line errors.
PREFECT_ENVIRONMENT = {
    "PREFECT_CLIENT_MAX_RETRIES": "2",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "PREFECT_CLI_COLORS": "false",
    "DO_NOT_TRACK": "1",
}


def start(
    parameters: CurateText,
    as_json: bool,
    retry: Retry | None = None,
    show: Callable[[RunSummary, bool], int] | None = None,
) -> int:
    """Runs ``curate_text``, shows its summary and returns the exit code. ``retry``: it does again what a run left."""
    for name, value in PREFECT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "PREFECT_API_URL" in os.environ:  # a server that outlives the run, and where somebody may read its log
        for kind in ("FLOW", "TASK"):
            os.environ.setdefault(f"PREFECT_LOGGING_LOGGERS_PREFECT_{kind}_RUNS_LEVEL", "INFO")
    from flows.credentials import credentials  # imports Prefect
    from flows.curate_text import prepare

    with ExitStack() as early:
        try:
            if parameters.credentials:  # they are asked for before all else, from the server that the run has
                early.enter_context(prefect_api())
            with credentials(parameters.credentials):
                prepare(parameters)
        except (Refused, NoServer) as error:
            return refuse(str(error))
        return _carry_out(parameters, as_json, retry, show or finish)


def _carry_out(
    parameters: CurateText, as_json: bool, retry: Retry | None, show: Callable[[RunSummary, bool], int]
) -> int:
    import httpx  # Prefect's client raises its errors
    from prefect.exceptions import PrefectException, TerminationSignal

    from flows.curate_text import curate_text
    from tasks.run import RunIncomplete

    console = Console(stderr=True)
    bounds = Bounds()
    watcher = Observer(bounds=bounds, retry=retry)
    try:
        with (
            logs.on_stderr(),
            drained_by_signals(bounds) as listen,
            prefect_api(),
            StageDisplay(console) as display,
        ):
            watcher.on_progress, watcher.listen = display.show, listen
            with watched_by(watcher):
                curate_text(parameters)
    except RunIncomplete as error:
        watcher.summary = error.summary
    except (KeyboardInterrupt, TerminationSignal):
        if watcher.summary is None:
            say(f"{bounds.reason or 'stopped'}: ended at once; what is done is kept, run the same command again")
            return OPEN
    except (RuntimeError, ValueError, OSError, EOFError, httpx.HTTPError, PrefectException) as error:
        logging.getLogger("winnow").debug("run ended", exc_info=True)
        why = " ".join(str(error).split()) or type(error).__name__
        if watcher.summary is None:
            say(f"{why}; what is done is kept, run the same command again" if watcher.began else why)
            return OPEN if watcher.began else REFUSED
        watcher.prefect_lost = True
        say(f"Prefect was unreachable ({why}); the run itself ended as follows")
    if watcher.summary is None:
        say("the flow ended without a summary; run the same command again")
        return OPEN
    code = show(watcher.summary, as_json)
    if watcher.prefect_lost:
        # everything is written; Prefect would hold the process for seconds an event that nobody will ever take
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def demo(folder: Path, as_json: bool) -> int:
    """Writes the demo's input from installed packages, then runs the whole job on it."""
    from flows.demo import DEMO, write_config, write_input
    from tasks.dataset import HIDDEN

    held = sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []
    if folder.exists() and not folder.is_dir():
        return refuse(f"{folder}: is a file; give --output a folder")
    if held and HIDDEN not in held:
        return refuse(f"{folder}: holds {held[0]} and no winnow run; give --output a new or empty folder")
    try:
        source = write_input(folder)
        write_config(folder, source)
    except (ValueError, StoreError) as error:
        return refuse(str(error))
    return start(CurateText(input=source, output=str(folder.absolute()), **DEMO), as_json)


def finish(summary: RunSummary, as_json: bool) -> int:
    if as_json:
        print_json(summary)
    else:
        print_summary(summary, Console())
    return CLOSED if summary.status is Status.DONE else OPEN


def refuse(why: str) -> int:
    say(why)
    return REFUSED


def say(what: str) -> None:
    logs.say(what)
