"""What a signal does to a run: it drains. For runs of the command line, and for those that a Prefect worker starts."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from tasks import logs
from tasks.observe import Observer, observer, watched_by
from tasks.stage import Bounds

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PR_SET_PDEATHSIG = 1  # prctl(2)
FLOW_RUN = "PREFECT__FLOW_RUN_ID"  # Prefect sets it for the process of a flow run that a worker starts
WORKER = "WINNOW_WORKER_PID"
"""Process id of the worker of `winnow serve` that started this process."""
AT_ONCE = "winnow: draining; what is done is kept (once more to stop at once)"
BY_WORKER = "winnow: a flow run drains; what is done is kept"


@contextmanager
def drained_by_signals(bounds: Bounds, say: str = AT_ONCE) -> Iterator[Callable[[], None]]:
    """The first SIGINT or SIGTERM drains the run, the second ends it at once.

    Yields what takes the signals back: Prefect sets its own handler as it enters a flow, Ray as it starts. Only the
    main thread can hear signals; elsewhere this does nothing.
    """
    heard = False

    def handle(number: int, frame: Any) -> None:
        nonlocal heard
        if heard:
            raise KeyboardInterrupt
        heard = True
        # not print: the signal may have come in the middle of one
        as_line = logs.spoken(say.removeprefix("winnow: "), logging.WARNING, "draining")
        os.write(2, (as_line if logs.as_json() else f"\n{say}\n").encode())
        bounds.stop(f"stopped by {signal.Signals(number).name}")

    def listen() -> None:
        if threading.current_thread() is threading.main_thread():
            for one in SIGNALS:
                signal.signal(one, handle)

    before = {one: signal.getsignal(one) for one in SIGNALS}
    listen()
    try:
        yield listen
    finally:
        if threading.current_thread() is threading.main_thread():
            for one, old in before.items():
                signal.signal(one, old)


def of_worker() -> bool:
    """Whether a Prefect worker started this process, and so nobody watches its terminal."""
    return FLOW_RUN in os.environ


@contextmanager
def listening() -> Iterator[Bounds]:
    """What bounds the flow run inside: the command's own signals, or those of the worker that started it."""
    if not of_worker():
        with watched_by(observer()) as one:
            yield one.bounds
        return
    bounds = Bounds()
    _die_with_worker(bounds)
    with (
        drained_by_signals(bounds, BY_WORKER) as listen,
        watched_by(Observer(bounds=bounds, listen=listen)),
    ):
        yield bounds


def name_who_stopped(bounds: Bounds) -> None:
    """Says in the reason who wanted the run to end, where a worker passed it on as a signal."""
    if of_worker() and bounds.reason.startswith("stopped by SIG"):
        bounds.reason = "cancelled in Prefect" if _is_cancelling() else "stopped with its worker"


def end_as_cancelled(bounds: Bounds, why: str) -> None:
    """Ends the process of a flow run that its worker asked to end, as Cancelled; nothing where nobody asked.

    A flow that raises or returns would have Prefect say Failed or Completed. Abort leaves the state as it is, and the
    process ends with 0.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import State
    from prefect.exceptions import Abort
    from prefect.states import Cancelled

    if not of_worker() or not bounds.reason.startswith(("cancelled in", "stopped with")):
        return
    state: State[Any] = Cancelled(message=why)
    try:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(os.environ[FLOW_RUN]), state, force=True)
    except Exception as error:  # the run is saved; Prefect's picture of it is worth no trouble
        logging.getLogger("winnow").warning("Prefect was not told that the run is cancelled: %s", error)
    ended = Abort(why)
    ended.state = state  # type: ignore[attr-defined]  # Prefect looks for it, and says it in the run's log
    raise ended


def _is_cancelling() -> bool:
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(os.environ[FLOW_RUN])).state
    except Exception as error:
        logging.getLogger("winnow").warning("Prefect does not say why the run was stopped: %s", error)
        return False
    return state is not None and (state.is_cancelling() or state.is_cancelled())


def _die_with_worker(bounds: Bounds) -> None:
    """The kernel tells this process when its worker is gone, killed or not: a run without one would hold its GPU."""
    worker = os.environ.get(WORKER)
    if worker is None:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(worker):  # it was gone before we asked to be told
        bounds.stop("stopped with its worker")
