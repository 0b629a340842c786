"""Spreads units of work over workers, whatever the workers are: threads of this process, or Ray actors.

One loop holds the rules for both: a worker is set up once, holds at most ``concurrency`` units (back-pressure), is
killed when it makes no progress, and its units are tried again a bounded number of times: one by one if they were
lost together. Data never passes through here: a worker reads and writes storage itself and gives back a record.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tasks.source import ShardError

POLL_SECONDS = 0.25
BEAT_SECONDS = 0.5
_LOG = logging.getLogger("winnow")


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life. ``steps`` only ever grows while there is progress; the rest is for display and budgets."""

    steps: int = 0
    rows: int = 0
    tokens: int = 0
    busy_seconds: float = 0.0
    setup_seconds: float = 0.0


class Worker(Protocol):
    """What a stage does to one unit. Pickled to where it runs, set up there once, then called unit by unit."""

    concurrency: int

    def setup(self) -> None: ...

    def process(self, unit: Any) -> Any:
        """The unit's record, or None where it was drained before the unit was finished."""

    def beat(self) -> Beat: ...

    def drain(self) -> None:
        """Stop soon: keep what is done, give up what is not."""

    def close(self) -> None: ...


class Handle(Protocol):
    """A worker that was started somewhere."""

    def call(self, method: str, *arguments: Any) -> Any:
        """Starts a call and returns its future."""

    def kill(self) -> None: ...


class Pool(Protocol):
    """Where workers run. ``wait`` returns the futures that are done; ``result`` gives a value or raises WorkerDied."""

    name: str

    def start(self, worker: Worker) -> Handle: ...

    def wait(self, futures: Sequence[Any], seconds: float) -> list[Any]: ...

    def result(self, future: Any) -> Any: ...

    def capacity(self, cpus: float, gpus: float) -> int:
        """How many workers of this size fit."""


class WorkerDied(RuntimeError):
    """The process behind a worker is gone."""


class SetupFailed(RuntimeError):
    """No worker is left and none can be set up: nothing can be done, and the run stops here."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits of every wait. ``retries``: attempts after the first. Times in seconds."""

    workers: int = 1
    retries: int = 2
    stall_seconds: float = 600.0
    setup_seconds: float = 900.0
    drain_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a unit ended: a value, an error after ``attempts``, or neither: given up because the run was stopped."""

    unit: Any
    value: Any = None
    error: str = ""
    attempts: int = 1


@dataclass
class Effort:
    """What the workers spent, summed over all that ever ran."""

    workers: int = 0
    tokens: int = 0
    rows: int = 0
    busy_seconds: float = 0.0
    ready_seconds: float = 0.0
    setup_seconds: float = 0.0

    @property
    def busy_share(self) -> float:
        return min(1.0, self.busy_seconds / self.ready_seconds) if self.ready_seconds > 0 else 0.0


Stop = Callable[[Effort], bool]


@dataclass(slots=True)
class _Trial:
    """A unit on its way. ``alone``: it was lost together with others, and nothing else may run beside it any more."""

    unit: Any
    attempt: int = 1
    alone: bool = False


@dataclass
class _Running:
    handle: Handle
    setup: Any
    moved: float
    ready: float = 0.0
    beat: Beat = field(default_factory=Beat)
    beat_future: Any = None
    beat_asked: float = 0.0
    trials: dict[int, tuple[Any, _Trial]] = field(default_factory=dict)  # id of future -> future and what it is for

    def takes_more(self, concurrency: int) -> bool:
        alone = any(trial.alone for _, trial in self.trials.values())
        return bool(self.ready) and not alone and len(self.trials) < concurrency


def run_units(
    pool: Pool, worker: Worker, units: Iterable[Any], policy: Policy, effort: Effort, stop: Stop = lambda effort: False
) -> Iterator[Outcome]:
    """Works through the units and yields each outcome as it comes. Once ``stop`` says so, no unit is started any more
    and what runs is drained. A worker that does not come up in ``retries`` + 1 tries is done without; raises
    SetupFailed where that leaves none.
    """
    return _Loop(pool, worker, units, policy, effort, stop).run()


class _Loop:
    def __init__(
        self, pool: Pool, worker: Worker, units: Iterable[Any], policy: Policy, effort: Effort, stop: Stop
    ) -> None:
        self.pool, self.worker, self.policy, self.effort, self.stop = pool, worker, policy, effort, stop
        self.queue: deque[_Trial] = deque(_Trial(unit) for unit in units)
        self.running: list[_Running] = []
        self.gone = Effort()
        self.setup_failures = 0
        self.draining_since: float | None = None
        self.outcomes: deque[Outcome] = deque()

    def run(self) -> Iterator[Outcome]:
        try:
            while self.queue or any(one.trials for one in self.running):
                self._steer()
                self._feed()
                self._collect()
                while self.outcomes:
                    yield self.outcomes.popleft()
            yield from self.outcomes
        finally:
            self._account()
            self._close()

    def _steer(self) -> None:
        """Decides whether to drain, and how long that may take."""
        now = time.monotonic()
        if self.draining_since is None and self.stop(self.effort):
            self.draining_since = now
            self.outcomes.extend(Outcome(one.unit, attempts=one.attempt) for one in self.queue)
            self.queue.clear()
            for one in self.running:
                one.handle.call("drain")
        if self.draining_since is not None and now - self.draining_since > self.policy.drain_seconds:
            for one in list(self.running):
                self._lose(one, f"did not drain within {self.policy.drain_seconds:.0f} s", retry=False)

    def _feed(self) -> None:
        held = sum(len(one.trials) for one in self.running)
        wanted = min(self.policy.workers, held + len(self.queue))
        may_start = self.draining_since is None and self.setup_failures <= self.policy.retries
        while may_start and len(self.running) < wanted:
            handle = self.pool.start(self.worker)
            self.running.append(_Running(handle, handle.call("setup"), time.monotonic()))
            self.effort.workers = max(self.effort.workers, len(self.running))
        # one unit more to the worker that holds least, so that few units are spread and not heaped
        while self.queue:
            free = [one for one in self.running if one.takes_more(self.worker.concurrency)]
            one = min(free, key=lambda one: len(one.trials), default=None)
            # one that must be alone waits for an empty worker, and all that came later waits behind it
            if one is None or (self.queue[0].alone and one.trials):
                return
            trial = self.queue.popleft()
            if not one.trials:
                one.moved = time.monotonic()
            future = one.handle.call("process", trial.unit)
            one.trials[id(future)] = (future, trial)

    def _collect(self) -> None:
        futures: list[Any] = []
        for one in self.running:
            if not one.ready:
                futures.append(one.setup)
            futures.extend(future for future, _ in one.trials.values())
        done = {id(future) for future in self.pool.wait(futures, POLL_SECONDS)} if futures else set()
        for one in list(self.running):
            self._collect_from(one, done)

    def _collect_from(self, one: _Running, done: set[int]) -> None:
        now = time.monotonic()
        if not one.ready:
            if id(one.setup) in done:
                try:
                    self.pool.result(one.setup)
                    one.ready = one.moved = now
                    self.setup_failures = 0
                except Exception as error:
                    self._setup_failed(one, _line(error), permanent=isinstance(error, (ValueError, ImportError)))
            elif now - one.moved > self.policy.setup_seconds:
                self._setup_failed(one, f"not ready after {self.policy.setup_seconds:.0f} s", permanent=False)
            return
        died = ""
        for key in [key for key in one.trials if key in done]:
            future, trial = one.trials[key]
            one.moved = now
            try:
                self.outcomes.append(Outcome(trial.unit, self.pool.result(future), attempts=trial.attempt))
            except WorkerDied as error:
                died = _line(error)
                continue
            except ShardError as error:
                self.outcomes.append(Outcome(trial.unit, error=_line(error), attempts=trial.attempt))
            except Exception as error:
                self._again(trial, f"{type(error).__name__}: {_line(error)}")
            del one.trials[key]
        if died:
            self._lose(one, died)
            return
        self._beat(one, now)
        if one.trials and now - one.moved > self.policy.stall_seconds:
            self._lose(one, f"no progress for {self.policy.stall_seconds:.0f} s, worker killed")

    def _beat(self, one: _Running, now: float) -> None:
        if one.beat_future is None:
            if now - one.beat_asked >= BEAT_SECONDS:
                one.beat_future, one.beat_asked = one.handle.call("beat"), now
            return
        if not self.pool.wait([one.beat_future], 0):
            return
        try:
            beat: Beat = self.pool.result(one.beat_future)
        except WorkerDied as error:
            self._lose(one, _line(error))
            return
        finally:
            one.beat_future = None
        if beat.steps != one.beat.steps:
            one.moved = now
        one.beat = beat
        self._account()

    def _account(self) -> None:
        now, gone = time.monotonic(), self.gone
        beats = [one.beat for one in self.running]
        self.effort.tokens = gone.tokens + sum(beat.tokens for beat in beats)
        self.effort.rows = gone.rows + sum(beat.rows for beat in beats)
        self.effort.busy_seconds = gone.busy_seconds + sum(beat.busy_seconds for beat in beats)
        self.effort.setup_seconds = max([gone.setup_seconds, *(beat.setup_seconds for beat in beats)])
        self.effort.ready_seconds = gone.ready_seconds + sum(now - one.ready for one in self.running if one.ready)

    def _setup_failed(self, one: _Running, error: str, permanent: bool) -> None:
        self._forget(one)
        self.setup_failures += self.policy.retries + 1 if permanent else 1
        if self.setup_failures <= self.policy.retries or self.draining_since is not None:
            return
        if not self.running:
            raise SetupFailed(f"a worker could not be set up: {error}")
        _LOG.warning("a worker could not be set up: %s; going on with %d", error, len(self.running))

    def _lose(self, one: _Running, why: str, retry: bool = True) -> None:
        trials = [trial for _, trial in one.trials.values()]
        one.trials.clear()
        self._forget(one)
        self.setup_failures = 0  # one that worked is gone: whether another comes up has to be seen anew
        for trial in trials:
            if not retry:
                self.outcomes.append(Outcome(trial.unit, attempts=trial.attempt))
            elif len(trials) > 1 and self.draining_since is None:
                self.queue.append(_Trial(trial.unit, trial.attempt, alone=True))
            else:
                self._again(trial, why)

    def _again(self, trial: _Trial, error: str) -> None:
        if self.draining_since is not None:
            self.outcomes.append(Outcome(trial.unit, attempts=trial.attempt))
        elif trial.attempt > self.policy.retries:
            self.outcomes.append(Outcome(trial.unit, error=error, attempts=trial.attempt))
        else:
            self.queue.append(_Trial(trial.unit, trial.attempt + 1, trial.alone))

    def _forget(self, one: _Running) -> None:
        self._account()
        self.gone.tokens += one.beat.tokens
        self.gone.rows += one.beat.rows
        self.gone.busy_seconds += one.beat.busy_seconds
        self.gone.setup_seconds = max(self.gone.setup_seconds, one.beat.setup_seconds)
        self.gone.ready_seconds += time.monotonic() - one.ready if one.ready else 0.0
        self.running.remove(one)
        one.handle.kill()

    def _close(self) -> None:
        """Asks each worker for its last figures and to free what it holds, then ends it."""
        asked = [(one, one.handle.call("beat"), one.handle.call("close")) for one in self.running if one.ready]
        deadline = time.monotonic() + 10.0
        for one, beat, close in asked:
            if self.pool.wait([beat], max(0.0, deadline - time.monotonic())):
                try:
                    one.beat = self.pool.result(beat)
                except WorkerDied:
                    continue
            self.pool.wait([close], max(0.0, deadline - time.monotonic()))
        self._account()
        for one in list(self.running):
            self._forget(one)
        self._account()


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:397] + "..."
