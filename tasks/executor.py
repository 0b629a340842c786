"""Spreads units of work over workers, whatever the workers are: threads of this process, or Ray actors.

One loop holds the rules for both: a worker is set up once, holds at most ``concurrency`` units (back-pressure), is
killed when it makes no progress, and its units are tried again a bounded number of times: one by one if they were
lost together. Data never passes through here: a worker reads and writes storage itself and gives back a record.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tasks.credentials import line_of
from tasks.logs import event
from tasks.source import ShardError
from tasks.workers import Beat, Effort, Handle, Outcome, Policy, Pool, SetupFailed, Stop, Worker, WorkerDied

__all__ = ["Beat", "Effort", "Outcome", "Policy", "Pool", "SetupFailed", "Worker", "WorkerDied", "run_units"]

POLL_SECONDS = 0.25
BEAT_SECONDS = 0.5
RESCUE_SECONDS = 15.0
"""How long a worker that is to be killed may take to put down what it holds and somebody paid for."""


@dataclass(slots=True)
class _Trial:
    """A unit on its way. ``alone``: it was lost together with others, and nothing else may run beside it any more."""

    unit: Any
    attempt: int = 1
    alone: bool = False
    since: float = 0.0


@dataclass
class _Running:
    number: int
    handle: Handle
    setup: Any
    moved: float
    ready: float = 0.0
    beat: Beat = field(default_factory=Beat)
    beat_future: Any = None
    beat_asked: float = 0.0
    trials: dict[int, tuple[Any, _Trial]] = field(default_factory=dict)  # id of future -> future and what it is for
    leaving: bool = False

    def takes_more(self, concurrency: int) -> bool:
        alone = any(trial.alone for _, trial in self.trials.values())
        return bool(self.ready) and not self.leaving and not alone and len(self.trials) < concurrency


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
        self.started = 0
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
        self._account()
        if self.draining_since is None and self.stop(self.effort):
            self.draining_since = now
            self.effort.draining = True
            event("draining", f"draining: {len(self.queue)} shards are left for later, those at hand are finished")
            self.outcomes.extend(Outcome(one.unit, attempts=one.attempt) for one in self.queue)
            self.queue.clear()
            for one in self.running:
                one.handle.call("drain")
        self._leave()
        if self.draining_since is not None and now - self.draining_since > self.policy.drain_seconds:
            for one in list(self.running):
                self._lose(one, f"did not drain within {self.policy.drain_seconds:.0f} s", retry=False)

    def _leave(self) -> None:
        """Workers whose machine is to go away put down what they hold; others take what they did not finish."""
        gone = {id(one) for one in self.pool.leaving([one.handle for one in self.running])}
        for one in [one for one in self.running if id(one.handle) in gone and not one.leaving]:
            one.leaving = True
            told = f"worker {one.number} drains: its machine is to go away; what it does not finish, another one does"
            event("worker_leaving", told, logging.WARNING, worker=one.number)
            one.handle.call("drain")
        for one in [one for one in self.running if one.leaving and one.ready and not one.trials]:
            self._forget(one)

    def _feed(self) -> None:
        held = sum(len(one.trials) for one in self.running)
        wanted = min(self.policy.workers, held + len(self.queue))
        may_start = self.draining_since is None and self.setup_failures <= self.policy.retries
        while may_start and len(self.running) < wanted:
            handle = self.pool.start(self.worker)
            self.started += 1
            self.running.append(_Running(self.started, handle, handle.call("setup"), time.monotonic()))
            self.effort.workers = max(self.effort.workers, len(self.running))
        # one unit more to the worker that holds least, so that few units are spread and not heaped
        while self.queue:
            free = [one for one in self.running if one.takes_more(self.worker.concurrency)]
            one = min(free, key=lambda one: len(one.trials), default=None)
            # one that must be alone waits for an empty worker, and all that came later waits behind it
            if one is None or (self.queue[0].alone and one.trials):
                return
            trial = self.queue.popleft()
            trial.since = time.monotonic()
            if not one.trials:
                one.moved = trial.since
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
                made = self.pool.result(future)
                if made is None and one.leaving and self.draining_since is None:
                    self.queue.appendleft(trial)  # given up with its machine, which is no fault of the unit's
                else:
                    self.outcomes.append(Outcome(trial.unit, made, attempts=trial.attempt))
            except WorkerDied as error:
                died = _line(error)
                continue
            except SetupFailed:
                raise  # no worker could do better: the stage ends here
            except ShardError as error:
                self._failed(trial, one, _line(error))
            except Exception as error:
                self._again(trial, one, f"{type(error).__name__}: {_line(error)}")
            del one.trials[key]
        if died:
            self._lose(one, died)
            return
        self._beat(one, now)
        if one.trials and now - one.moved > self.policy.stall_seconds:
            self.pool.wait([one.handle.call("drain")], RESCUE_SECONDS)  # one stuck in native code does not answer
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
        self.effort.steps = gone.steps + sum(beat.steps for beat in beats)
        self.effort.spent = sum((Counter(beat.spent) for beat in beats), gone.spent)
        self.effort.busy_seconds = gone.busy_seconds + sum(beat.busy_seconds for beat in beats)
        self.effort.setup_seconds = max([gone.setup_seconds, *(beat.setup_seconds for beat in beats)])
        self.effort.ready_seconds = gone.ready_seconds + sum(now - one.ready for one in self.running if one.ready)
        self.effort.alive = sum(bool(one.ready) for one in self.running)
        self.effort.most = self.effort.alive * self.worker.concurrency
        trials = [trial for one in self.running for _, trial in one.trials.values()]
        self.effort.held = tuple((trial.unit, trial.since) for trial in trials)

    def _setup_failed(self, one: _Running, error: str, permanent: bool) -> None:
        self._forget(one)
        self.setup_failures += self.policy.retries + 1 if permanent else 1
        if self.setup_failures <= self.policy.retries or self.draining_since is not None:
            return
        if not self.running:
            raise SetupFailed(f"a worker could not be set up: {error}")
        told = f"a worker could not be set up: {error}; going on with {len(self.running)}"
        event("worker_not_set_up", told, logging.WARNING, worker=one.number, error=error)

    def _lose(self, one: _Running, why: str, retry: bool = True) -> None:
        trials = [trial for _, trial in one.trials.values()]
        one.trials.clear()
        self._forget(one)
        self.effort.lost += 1
        event("worker_lost", f"worker {one.number} is lost: {why}", logging.WARNING, worker=one.number, error=why)
        self.setup_failures = 0  # one that worked is gone: whether another comes up has to be seen anew
        for trial in trials:
            if not retry:
                self.outcomes.append(Outcome(trial.unit, attempts=trial.attempt))
            elif one.leaving and self.draining_since is None:
                self.queue.append(_Trial(trial.unit, trial.attempt, trial.alone))
            elif len(trials) > 1 and self.draining_since is None:
                self.queue.append(_Trial(trial.unit, trial.attempt, alone=True))
            else:
                self._again(trial, one, why)

    def _again(self, trial: _Trial, one: _Running, error: str) -> None:
        if self.draining_since is not None:
            self.outcomes.append(Outcome(trial.unit, attempts=trial.attempt))
        elif trial.attempt > self.policy.retries:
            self._failed(trial, one, error)
        else:
            self.effort.retries += 1
            self.queue.append(_Trial(trial.unit, trial.attempt + 1, trial.alone))
            most = self.policy.retries + 1
            told = f"{_name(trial.unit)} failed and is tried again (attempt {trial.attempt} of {most}): {error}"
            _told("shard_retried", told, logging.WARNING, trial, one, error)

    def _failed(self, trial: _Trial, one: _Running, error: str) -> None:
        self.outcomes.append(Outcome(trial.unit, error=error, attempts=trial.attempt))
        told = f"{_name(trial.unit)} failed (attempt {trial.attempt}) and is left out: {error}"
        _told("shard_failed", told, logging.ERROR, trial, one, error)

    def _forget(self, one: _Running) -> None:
        self._account()
        self.gone.tokens += one.beat.tokens
        self.gone.rows += one.beat.rows
        self.gone.steps += one.beat.steps
        self.gone.spent = self.gone.spent + Counter(one.beat.spent)
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
        self.pool.close()


def _told(what: str, told: str, level: int, trial: _Trial, one: _Running, error: str) -> None:
    event(what, told, level, shard=_name(trial.unit), worker=one.number, attempt=trial.attempt, error=error)


def _name(unit: Any) -> str:
    return str(getattr(unit, "name", unit))


def _line(error: BaseException) -> str:
    return line_of(error, 400)
