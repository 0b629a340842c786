"""What never comes back: an engine that stops answering, an operator in native code with and without the lock."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from operators.base import execution
from operators.language.engine import Completion, Request, Sampling
from tasks import rewrite
from tasks.rewrite import RewriteWorker
from tests.toys import FakeEngine, Length

FOREVER = 600


class StopsAnswering(FakeEngine):
    """Answers ``answers`` requests and then nothing more, inside a call, until the file ``mark`` stands."""

    def __init__(self, calls: Path, mark: Path, answers: int, delay: float = 0.0) -> None:
        super().__init__(calls, delay)
        self.mark, self.answers = mark, answers

    def generate(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[tuple[Request, Completion]]:
        for number, answer in enumerate(super().generate(requests, sampling)):
            if number == self.answers and not self.mark.exists():
                self.mark.touch()
                time.sleep(FOREVER)
            yield answer


class WithStuckEngine(RewriteWorker):
    """A worker that brings this engine to wherever it runs. Its first engine stops answering, later ones do not.

    ``delay``: seconds an answer.
    """

    calls: Path
    mark: Path
    answers: int
    delay: float

    @classmethod
    def instead_of(cls, worker: Any, calls: Path, mark: Path, answers: int, delay: float = 0.0) -> WithStuckEngine:
        made = cls(**{name: getattr(worker, name) for name in worker.__dataclass_fields__ if not name.startswith("_")})
        made.calls, made.mark, made.answers, made.delay = calls, mark, answers, delay
        return made

    def setup(self) -> None:
        before = rewrite.load_engine
        rewrite.load_engine = lambda settings, folder: StopsAnswering(self.calls, self.mark, self.answers, self.delay)
        try:
            super().setup()
        finally:
            rewrite.load_engine = before


class InNativeCode(Length):
    """Sleeps in the C library at the first text that holds ``where``; ``holds_lock``: without letting Python go on."""

    where: str
    mark: str = execution("")
    holds_lock: bool = execution(True)

    def __call__(self, table: pa.Table) -> pa.Table:
        if any(self.where in text for text in table.column("text").to_pylist()) and not Path(self.mark).exists():
            Path(self.mark).touch()
            (ctypes.PyDLL if self.holds_lock else ctypes.CDLL)(None).sleep(FOREVER)
        return super().__call__(table)
