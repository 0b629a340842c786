"""Workers as threads of this process: for small runs, for tests, and where there is no Ray.

A thread cannot be killed. A worker that makes no progress is abandoned: its thread goes on in the dark, what it may
still commit is the same bytes as its successor's, and the process can end because the thread is a daemon. One that
keeps Python's lock stops all others as well, and the loop: see :mod:`tasks.frozen`.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from tasks.frozen import Watch
from tasks.logs import spoken
from tasks.workers import Handle, Notice, Policy, Worker

FROZEN_SLACK_SECONDS = 30.0
"""Beyond the limit of a stall: a worker that others could see stuck is given up first, and the process lives."""


class _Thread:
    def __init__(self, worker: Worker, about_to: Callable[[], None]) -> None:
        # through pickle, as Ray does it: a worker that cannot travel fails here and not on the cluster
        self.worker: Worker = pickle.loads(pickle.dumps(worker))
        self.under_way: dict[Future[Any], tuple[str, Any]] = {}
        self.about_to = about_to

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.under_way[future] = (method, arguments[0] if arguments else None)
        if method in ("setup", "process"):
            self.about_to()

        def run() -> None:
            try:
                made = getattr(self.worker, method)(*arguments)
            except BaseException as error:  # handed to whoever reads the future
                self.under_way.pop(future)
                future.set_exception(error)
            else:
                self.under_way.pop(future)
                future.set_result(made)

        threading.Thread(target=run, daemon=True, name=f"winnow-{method}").start()
        return future

    def kill(self) -> None:
        self.call("drain")  # what a thread has in hand may be waiting for a store: nobody waits for that here


class LocalPool:
    """As many workers as asked for, all in this process. ``policy``: by its limits a frozen process is ended; None: by
    none."""

    name = "local"

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = policy
        self._threads: list[_Thread] = []
        self._watch: Watch | None = None

    def start(self, worker: Worker) -> _Thread:
        if self.policy is not None and self._watch is None:
            self._watch = Watch(self._frozen)
        self._threads.append(_Thread(worker, self._watch.tell if self._watch is not None else lambda: None))
        return self._threads[-1]

    def wait(self, futures: Sequence[Future[Any]], seconds: float) -> list[Future[Any]]:
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
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _frozen(self) -> tuple[float, str]:
        assert self.policy is not None
        calls = [call for one in self._threads for call in list(one.under_way.values())]
        limit = self.policy.stall_seconds
        if any(method == "setup" for method, _ in calls):
            limit = max(limit, self.policy.setup_seconds)
        units = sorted(str(getattr(unit, "name", unit)) for method, unit in calls if method == "process")
        what = f"{', '.join(units[:3])}: " if units else ""
        told = (
            f"{what}native code has let nothing else of this process run for {limit + FROZEN_SLACK_SECONDS:.0f} s, so "
            "it was ended (--stall-seconds); what is done is kept, the same command goes on, and with --executor ray "
            "one worker alone is killed"
        )
        return limit + FROZEN_SLACK_SECONDS, spoken(told, logging.ERROR, "process_frozen")
