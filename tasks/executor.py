"""Spreads units of work over workers, whatever the workers are: threads of this process, or Ray actors.

One loop holds the rules for both: a worker is set up once, holds at most ``concurrency`` units (back-pressure), is
killed when it makes no progress, and its units are tried again a bounded number of times: one by one if they were
lost together. Data never passes through here: a worker reads and writes storage itself and gives back a record.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from tasks.credentials import line_of
from tasks.crew import Fate, LastCall, Running, Trial, sum_up, take_leave
from tasks.logs import event
from tasks.source import ShardError
from tasks.store import StoreAway
from tasks.workers import Beat, Effort, Outcome, Policy, Pool, SetupFailed, Stop, Worker, WorkerDied

__all__ = ["Beat", "Effort", "Outcome", "Policy", "Pool", "SetupFailed", "Worker", "WorkerDied", "run_units"]

POLL_SECONDS = 0.25
BEAT_SECONDS = 0.5
RESCUE_SECONDS = 15.0
"""How long a worker that is to be killed may take to put down what it holds and somebody paid for. At most half of the
limit that it ran into."""
FIRST_BREAK, LONGEST_BREAK = 2.0, 60.0
"""Seconds before a unit is tried again to which the store did not answer; doubled each time."""


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
        self.queue: deque[Trial] = deque(Trial(unit) for unit in units)
        self.running: list[Running] = []
        self.gone = Effort()
        self.setup_failures = 0
        self.started = 0
        self.drain_by: float | None = None
        self.away_since = 0.0
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
        ending = self.pool.ending()
        if ending is not None:
            self.effort.ending = ending.why
        stopped = self.stop(self.effort)
        if self.drain_by is None and (stopped or ending is not None):
            self._drain(now)
        if self.drain_by is None:
            self._leave(now)
            return
        if ending is not None:
            self.drain_by = min(self.drain_by, ending.by)
        grace = _grace(self.policy.drain_seconds)
        if now > self.drain_by - grace:
            for one in [one for one in self.running if one.last_call is None]:
                why = f"did not drain within {self.policy.drain_seconds:.0f} s"
                self._last_call(one, why, Fate.OPEN, self.drain_by - now)

    def _drain(self, now: float) -> None:
        self.drain_by = now + self.policy.drain_seconds
        self.effort.draining = True
        event("draining", f"draining: {len(self.queue)} shards are left for later, those at hand are finished")
        self.outcomes.extend(Outcome(one.unit, attempts=one.attempt) for one in self.queue)
        self.queue.clear()
        for one in self.running:
            one.handle.call("drain")

    def _leave(self, now: float) -> None:
        """Workers whose machine is to go away put down what they hold; others take what they did not finish."""
        told = {id(handle): by for handle, by in self.pool.leaving([one.handle for one in self.running])}
        for one in [one for one in self.running if id(one.handle) in told and one.stays]:
            one.leave_by = min(told[id(one.handle)], now + self.policy.drain_seconds)
            seconds = max(0.0, one.leave_by - now)
            line = f"worker {one.number} drains: its machine is to go away; others take what it has not finished"
            event("worker_leaving", line, logging.WARNING, worker=one.number, seconds=round(seconds))
            one.handle.call("drain")
        for one in [one for one in self.running if one.leave_by is not None and one.last_call is None]:
            left = one.leave_by - now if one.leave_by is not None else 0.0
            if not one.trials:
                self._forget(one)
            elif left < _grace(self.policy.drain_seconds):
                self._last_call(one, "its machine goes away", Fate.FREE, left)

    def _last_call(self, one: Running, why: str, fate: Fate, seconds: float) -> None:
        """Has a worker put down what it holds before it is ended: it may be stuck, and what it holds not."""
        one.last_call = LastCall(why, fate, time.monotonic() + seconds, one.handle.call("drain"))

    def _feed(self) -> None:
        staying = [one for one in self.running if one.stays]
        held = sum(len(one.trials) for one in staying)
        wanted = min(self.policy.workers, held + len(self.queue))
        may_start = self.drain_by is None and self.setup_failures <= self.policy.retries
        while may_start and len(staying) < wanted:
            handle = self.pool.start(self.worker)
            self.started += 1
            staying.append(Running(self.started, handle, handle.call("setup"), time.monotonic()))
            self.running.append(staying[-1])
            self.effort.workers = max(self.effort.workers, len(staying))
        while self._hand_out():
            continue

    def _hand_out(self) -> bool:
        """Gives out one unit, if there is one for which it is time, and a worker for it."""
        now = time.monotonic()
        trial = next((one for one in self.queue if one.not_before <= now), None)
        # to the worker that holds least, so that few units are spread and not heaped
        free = [one for one in self.running if one.takes_more(self.worker.concurrency)]
        one = min(free, key=lambda one: len(one.trials), default=None)
        # one that must be alone waits for an empty worker, and all that came later waits behind it
        if trial is None or one is None or (trial.alone and one.trials):
            return False
        self.queue.remove(trial)
        trial.since = now
        if not one.trials:
            one.moved = now
        future = one.handle.call("process", trial.unit)
        one.trials[id(future)] = (future, trial)
        return True

    def _collect(self) -> None:
        futures: list[Any] = []
        for one in self.running:
            if not one.ready:
                futures.append(one.setup)
            futures.extend(future for future, _ in one.trials.values())
        if not futures:  # all wait for the end of a break
            time.sleep(POLL_SECONDS)
        done = {id(future) for future in self.pool.wait(futures, POLL_SECONDS)} if futures else set()
        for one in list(self.running):
            self._collect_from(one, done)

    def _collect_from(self, one: Running, done: set[int]) -> None:
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
                self._take(trial, one, self.pool.result(future))
            except WorkerDied as error:
                died = _line(error)
                continue
            except SetupFailed:
                raise  # no worker could do better: the stage ends here
            except ShardError as error:
                self._failed(trial, one, _line(error))
            except StoreAway as error:
                self._wait_for_store(trial, one, _line(error))
            except Exception as error:
                self._again(trial, one, f"{type(error).__name__}: {_line(error)}")
            del one.trials[key]
        if died:
            self._lose(one, died)
        elif one.last_call is not None:
            if now > one.last_call.by or self.pool.wait([one.last_call.put_down], 0):
                self._lose(one, one.last_call.why)
        else:
            self._beat(one, now)
            limit = self.policy.stall_seconds
            if one.trials and now - one.moved > limit and one in self.running:
                self._last_call(one, f"no progress for {limit:.0f} s, worker killed", Fate.CHARGED, _grace(limit))

    def _take(self, trial: Trial, one: Running, made: Any) -> None:
        if made is None and self.drain_by is None and one.last_call is not None:
            self._again(trial, one, one.last_call.why)
        elif made is None and self.drain_by is None and not one.stays:
            self.queue.appendleft(trial)  # given up with its machine, which is no fault of the unit's
        else:
            self.outcomes.append(Outcome(trial.unit, made, attempts=trial.attempt))
            self.away_since = 0.0

    def _beat(self, one: Running, now: float) -> None:
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
        sum_up(self.effort, self.gone, self.running, self.worker.concurrency)

    def _setup_failed(self, one: Running, error: str, permanent: bool) -> None:
        self._forget(one)
        self.setup_failures += self.policy.retries + 1 if permanent else 1
        if self.setup_failures <= self.policy.retries or self.drain_by is not None:
            return
        if not self.running:
            raise SetupFailed(f"a worker could not be set up: {error}")
        told = f"a worker could not be set up: {error}; going on with {len(self.running)}"
        event("worker_not_set_up", told, logging.WARNING, worker=one.number, error=error)

    def _lose(self, one: Running, why: str) -> None:
        fate = one.last_call.fate if one.last_call is not None else Fate.CHARGED if one.stays else Fate.FREE
        trials = [trial for _, trial in one.trials.values()]
        one.trials.clear()
        self._forget(one)
        self.effort.lost += 1
        event("worker_lost", f"worker {one.number} is lost: {why}", logging.WARNING, worker=one.number, error=why)
        self.setup_failures = 0  # one that worked is gone: whether another comes up has to be seen anew
        for trial in trials:
            if fate is Fate.OPEN or self.drain_by is not None:
                self.outcomes.append(Outcome(trial.unit, attempts=trial.attempt))
            elif fate is Fate.FREE:
                self.queue.append(trial)
            elif len(trials) > 1:
                self.queue.append(Trial(trial.unit, trial.attempt, alone=True))
            else:
                self._again(trial, one, why)

    def _wait_for_store(self, trial: Trial, one: Running, error: str) -> None:
        """No fault of the unit's: it is tried again after a break, and no attempt is counted, until a stall's limit has
        passed. Raises SetupFailed where nothing else was finished for as long either: the store is gone.
        """
        now, patience = time.monotonic(), self.policy.stall_seconds
        self.away_since, trial.away_since = self.away_since or now, trial.away_since or now
        if self.drain_by is not None:
            self.outcomes.append(Outcome(trial.unit, attempts=trial.attempt))
        elif now - trial.away_since > patience:
            self._failed(trial, one, error)
        elif now - self.away_since > patience:
            raise SetupFailed(f"the store has taken and given nothing for {now - self.away_since:.0f} s: {error}")
        else:
            pause = min(LONGEST_BREAK, FIRST_BREAK * 2**trial.breaks)
            trial.breaks, trial.not_before = trial.breaks + 1, now + pause
            self.effort.retries += 1
            self.queue.append(trial)
            told = f"{_name(trial.unit)} waits {pause:.0f} s for the store and is tried again: {error}"
            _told("store_away", told, logging.WARNING, trial, one, error)

    def _again(self, trial: Trial, one: Running, error: str) -> None:
        if self.drain_by is not None:
            self.outcomes.append(Outcome(trial.unit, attempts=trial.attempt))
        elif trial.attempt > self.policy.retries:
            self._failed(trial, one, error)
        else:
            self.effort.retries += 1
            self.queue.append(Trial(trial.unit, trial.attempt + 1, trial.alone))
            most = self.policy.retries + 1
            told = f"{_name(trial.unit)} failed and is tried again (attempt {trial.attempt} of {most}): {error}"
            _told("shard_retried", told, logging.WARNING, trial, one, error)

    def _failed(self, trial: Trial, one: Running, error: str) -> None:
        self.outcomes.append(Outcome(trial.unit, error=error, attempts=trial.attempt))
        told = f"{_name(trial.unit)} failed (attempt {trial.attempt}) and is left out: {error}"
        _told("shard_failed", told, logging.ERROR, trial, one, error)

    def _forget(self, one: Running) -> None:
        self._account()
        take_leave(self.gone, one)
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


def _told(what: str, told: str, level: int, trial: Trial, one: Running, error: str) -> None:
    event(what, told, level, shard=_name(trial.unit), worker=one.number, attempt=trial.attempt, error=error)


def _grace(limit: float) -> float:
    return min(RESCUE_SECONDS, limit / 2)


def _name(unit: Any) -> str:
    return str(getattr(unit, "name", unit))


def _line(error: BaseException) -> str:
    return line_of(error, 400)
