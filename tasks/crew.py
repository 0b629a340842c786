"""The workers at work and what each of them holds: what the loop of :mod:`tasks.executor` keeps its books on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tasks.workers import Beat, Effort, Handle


class Fate(StrEnum):
    """What becomes of the units of a worker that ends before they are finished."""

    CHARGED = "charged"
    """They are tried again, and this was an attempt."""
    FREE = "free"
    """They are tried again, and it was none: nothing that they did ended the worker."""
    OPEN = "open"
    """They are left for the next run."""


@dataclass(slots=True)
class Trial:
    """A unit on its way. ``alone``: it was lost together with others, and nothing else may run beside it any more.

    ``away_since``: when the store first did not answer it, ``breaks``: how often it did not; ``not_before``: when it is
    tried again. In monotonic seconds, 0 where that never was.
    """

    unit: Any
    attempt: int = 1
    alone: bool = False
    since: float = 0.0
    away_since: float = 0.0
    breaks: int = 0
    not_before: float = 0.0


@dataclass(frozen=True, slots=True)
class LastCall:
    """A worker was asked to put down what it holds and somebody paid for. It is ended when it has, or at ``by``."""

    why: str
    fate: Fate
    by: float
    put_down: Any


@dataclass
class Running:
    """``leave_by``: its machine is to go away, and it has to be off it at this time (monotonic seconds)."""

    number: int
    handle: Handle
    setup: Any
    moved: float
    ready: float = 0.0
    beat: Beat = field(default_factory=Beat)
    beat_future: Any = None
    beat_asked: float = 0.0
    trials: dict[int, tuple[Any, Trial]] = field(default_factory=dict)  # id of future -> future and what it is for
    leave_by: float | None = None
    last_call: LastCall | None = None

    @property
    def stays(self) -> bool:
        return self.leave_by is None

    def takes_more(self, concurrency: int) -> bool:
        alone = any(trial.alone for _, trial in self.trials.values())
        going = self.last_call is not None or not self.stays
        return bool(self.ready) and not going and not alone and len(self.trials) < concurrency


def sum_up(effort: Effort, gone: Effort, running: Sequence[Running], concurrency: int) -> None:
    """Brings ``effort`` up to date: what those that are gone spent, and those that run."""
    now, beats = time.monotonic(), [one.beat for one in running]
    effort.tokens = gone.tokens + sum(beat.tokens for beat in beats)
    effort.rows = gone.rows + sum(beat.rows for beat in beats)
    effort.steps = gone.steps + sum(beat.steps for beat in beats)
    effort.spent = sum((Counter(beat.spent) for beat in beats), gone.spent)
    effort.busy_seconds = gone.busy_seconds + sum(beat.busy_seconds for beat in beats)
    effort.setup_seconds = max([gone.setup_seconds, *(beat.setup_seconds for beat in beats)])
    effort.ready_seconds = gone.ready_seconds + sum(now - one.ready for one in running if one.ready)
    effort.alive = sum(bool(one.ready) for one in running)
    effort.most = effort.alive * concurrency
    trials = [trial for one in running for _, trial in one.trials.values()]
    effort.held = tuple((trial.unit, trial.since) for trial in trials)


def take_leave(gone: Effort, one: Running) -> None:
    """Adds what a worker spent to what those spent that are gone."""
    gone.tokens += one.beat.tokens
    gone.rows += one.beat.rows
    gone.steps += one.beat.steps
    gone.spent = gone.spent + Counter(one.beat.spent)
    gone.busy_seconds += one.beat.busy_seconds
    gone.setup_seconds = max(gone.setup_seconds, one.beat.setup_seconds)
    gone.ready_seconds += time.monotonic() - one.ready if one.ready else 0.0
