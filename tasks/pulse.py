"""A worker's signs of life: counters that its threads raise and its driver reads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.executor import Beat


class Pulse:
    """Thread-safe. Busy time is the union of the intervals in which at least one unit was worked on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps = self._rows = self._tokens = self._inside = 0
        self._busy = self._since = self._setup = 0.0

    def step(self, rows: int = 0, tokens: int = 0) -> None:
        with self._lock:
            self._steps += 1
            self._rows += rows
            self._tokens += tokens

    def was_set_up(self, seconds: float) -> None:
        with self._lock:
            self._setup = seconds

    @contextmanager
    def busy(self) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._since = time.monotonic()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._busy += time.monotonic() - self._since

    def beat(self) -> Beat:
        with self._lock:
            running = time.monotonic() - self._since if self._inside else 0.0
            return Beat(self._steps, self._rows, self._tokens, self._busy + running, self._setup)
