"""Workers as threads of this process: for small runs, for tests, and where there is no Ray.

A thread cannot be killed. A worker that makes no progress is abandoned: its thread goes on in the dark, what it may
still commit is the same bytes as its successor's, and the process can end because the thread is a daemon.

A thread stuck in native code that keeps the interpreter's lock stops all others, the loop that would notice too. A
watch that needs no lock then ends the process, with the stacks of all threads on standard error.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from tasks.workers import Handle, Notice, Worker


class _Thread:
    def __init__(self, worker: Worker) -> None:
        # through pickle, as Ray does it: a worker that cannot travel fails here and not on the cluster
        self.worker: Worker = pickle.loads(pickle.dumps(worker))

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(getattr(self.worker, method)(*arguments))
            except BaseException as error:  # handed to whoever reads the future
                future.set_exception(error)

        threading.Thread(target=run, daemon=True, name=f"winnow-{method}").start()
        return future

    def kill(self) -> None:
        self.call("drain")  # what a thread has in hand may be waiting for a store: nobody waits for that here


FROZEN_SLACK_SECONDS = 30.0
"""Beyond the limit of a stall: a worker that others could see stuck is given up first, and the process lives."""


class LocalPool:
    """As many workers as asked for, all in this process.

    ``frozen_seconds``: how long the process may stand as a whole before the watch ends it with exit code 1; 0: none.
    """

    name = "local"

    def __init__(self, frozen_seconds: float = 0.0) -> None:
        self.frozen_seconds = frozen_seconds

    def start(self, worker: Worker) -> _Thread:
        return _Thread(worker)

    def wait(self, futures: Sequence[Future[Any]], seconds: float) -> list[Future[Any]]:
        if self.frozen_seconds:
            # set anew at each turn of the loop; sys.stderr may be a stream of a test's or a notebook's own
            faulthandler.dump_traceback_later(self.frozen_seconds, exit=True, file=sys.__stderr__ or 2)
        return list(wait(futures, timeout=seconds, return_when=FIRST_COMPLETED).done)

    def result(self, future: Future[Any]) -> Any:
        return future.result(timeout=0)

    def capacity(self, cpus: float, gpus: float) -> int:
        return max(1, int(len(os.sched_getaffinity(0)) // max(cpus, 1e-9)))

    def leaving(self, handles: Sequence[Handle]) -> list[tuple[Handle, float]]:
        return []  # a machine that goes away tells its processes by SIGTERM

    def ending(self) -> Notice | None:
        return None

    def close(self) -> None:
        if self.frozen_seconds:
            faulthandler.cancel_dump_traceback_later()
