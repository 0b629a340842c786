"""Who hears of a run's progress, and what can stop it: carried beside the flow, since neither is a parameter of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from tasks.pending import Retry
from tasks.progress import Progress
from tasks.stage import Bounds
from tasks.summary import RunSummary


@dataclass
class Observer:
    """``on_progress`` hears of every stage about once a second, ``also`` too; ``bounds`` is shared by the stages.

    ``listen`` takes the signals back from whoever took them: Prefect as it enters a flow, Ray as it starts. ``began``
    once a stage was started, ``summary`` once the run's was saved, ``prefect_lost`` once Prefect did not answer.
    ``retry``: the run does again what that one left in quarantine.
    """

    on_progress: Callable[[Progress], None] = lambda progress: None
    also: list[Callable[[Progress], None]] = field(default_factory=list)
    bounds: Bounds = field(default_factory=Bounds)
    listen: Callable[[], None] = lambda: None
    began: bool = False
    summary: RunSummary | None = None
    prefect_lost: bool = False
    retry: Retry | None = None

    def hears(self, progress: Progress) -> None:
        self.on_progress(progress)
        for one in self.also:
            one(progress)


_OBSERVER: ContextVar[Observer | None] = ContextVar("winnow_observer", default=None)


def observer() -> Observer:
    """The observer of this run; a silent one where nobody watches."""
    return _OBSERVER.get() or Observer()


@contextmanager
def watched_by(one: Observer) -> Iterator[Observer]:
    token = _OBSERVER.set(one)
    try:
        yield one
    finally:
        _OBSERVER.reset(token)
