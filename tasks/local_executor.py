"""Workers as threads of this process: for small runs, for tests, and where there is no Ray.

A thread cannot be killed. A worker that makes no progress is abandoned: its thread goes on in the dark, what it may
still commit is the same bytes as its successor's, and the process can end because the thread is a daemon.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from tasks.executor import Worker


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
        self.worker.drain()


class LocalPool:
    """``pool = LocalPool()``: as many workers as asked for, all in this process."""

    name = "local"

    def start(self, worker: Worker) -> _Thread:
        return _Thread(worker)

    def wait(self, futures: Sequence[Future[Any]], seconds: float) -> list[Future[Any]]:
        return list(wait(futures, timeout=seconds, return_when=FIRST_COMPLETED).done)

    def result(self, future: Future[Any]) -> Any:
        return future.result(timeout=0)

    def capacity(self, cpus: float, gpus: float) -> int:
        return max(1, int(len(os.sched_getaffinity(0)) // max(cpus, 1e-9)))
