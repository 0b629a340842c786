"""Workers that are to go, one by one: stuck ones are asked once more before they are killed, those on a machine that
leaves give up what they hold to others, and those that a store does not answer wait for it.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Any

import pytest

from tasks import executor
from tasks.executor import Effort, Policy, SetupFailed, run_units
from tasks.workers import Notice
from tests.scripted import AWAY, DIES, FINE, GIVES_UP, HANGS, Plain, ScriptedHandle, ScriptedPool, work


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "POLL_SECONDS", 0.01)


def test_a_worker_that_stalls_is_asked_to_put_down_what_it_holds_before_it_is_killed() -> None:
    pool = ScriptedPool(lambda unit, attempt: HANGS if not pool.handles[0].killed else FINE)
    assert [one.value for one in work(pool, [0], stall_seconds=0.1)] == ["made 0"]
    assert pool.handles[0].drained and pool.handles[0].killed


def test_what_a_worker_on_a_leaving_machine_gives_up_is_made_by_another_and_no_attempt_is_counted() -> None:
    """The first worker is told to go while it holds a unit; it gives that up, and gets no other."""

    def script(unit: Any, attempt: int) -> str:
        pool.gone = {0}
        if pool.handles[0].killed:
            return FINE
        return GIVES_UP if pool.handles[0].drained else HANGS

    pool = ScriptedPool(script)
    outcomes = work(pool, range(3), retries=0)
    assert sorted((one.unit, one.value, one.attempts, one.error) for one in outcomes) == [
        (unit, f"made {unit}", 1, "") for unit in range(3)
    ]
    assert pool.handles[0].killed and len(pool.handles) == 2 and pool.closed == 1
    assert pool.tries == {0: 2, 1: 1, 2: 1}, "given up once, and made once"


def test_a_machine_that_goes_before_its_worker_has_drained_costs_no_attempt_either() -> None:
    def script(unit: Any, attempt: int) -> str:
        pool.gone = {0}
        if pool.handles[0].killed:
            return FINE
        return DIES if pool.handles[0].drained else HANGS

    pool = ScriptedPool(script)
    outcomes = work(pool, range(2), retries=0)
    assert {one.unit: (one.value, one.attempts) for one in outcomes} == {0: ("made 0", 1), 1: ("made 1", 1)}


def test_a_stuck_worker_does_not_keep_the_loop_from_the_others() -> None:
    """Each of them may take its time to put down what it holds: all of them together take no longer than one."""

    class Slow(ScriptedPool):
        def _call(self, handle: ScriptedHandle, method: str, *arguments: Any) -> Future[Any]:
            return Future() if method == "drain" else super()._call(handle, method, *arguments)

    pool = Slow(lambda unit, attempt: HANGS if unit < 6 and not all(one.killed for one in pool.handles[:6]) else FINE)
    began = time.monotonic()
    outcomes = work(pool, range(12), workers=6, retries=1, stall_seconds=1.0)
    assert 1.5 < time.monotonic() - began < 4.0
    assert sorted(one.unit for one in outcomes if one.value) == list(range(12))


def test_what_does_not_drain_in_time_is_asked_to_put_down_what_it_holds_within_that_time() -> None:
    class Noted(ScriptedPool):
        drains = 0

        def _call(self, handle: ScriptedHandle, method: str, *arguments: Any) -> Future[Any]:
            self.drains += method == "drain"
            return super()._call(handle, method, *arguments)

    pool = Noted(lambda unit, attempt: HANGS)
    began = time.monotonic()
    outcomes = work(pool, range(2), drain_seconds=1.0, stop=lambda effort: bool(effort.held))
    assert 0.4 < time.monotonic() - began < 1.0
    assert pool.drains == 2 and not any(one.value or one.error for one in outcomes)


def test_a_worker_on_a_leaving_machine_is_replaced_before_it_has_drained() -> None:
    """On a cluster the others go on, and the new one waits for a machine with room while the old one finishes."""

    def script(unit: Any, attempt: int) -> str:
        pool.gone = {0}
        return HANGS if unit == 0 and len(pool.handles) < 2 else FINE

    pool = ScriptedPool(script)
    outcomes = work(pool, range(4), retries=0)
    assert sorted(one.unit for one in outcomes if one.value) == list(range(4))
    assert pool.tries[0] == 1, "what the old one finished in time is kept"


def test_a_machine_is_left_before_it_goes() -> None:
    pool = ScriptedPool(lambda unit, attempt: HANGS if not pool.handles[0].killed else FINE)
    pool.gone, pool.gone_by = {0}, time.monotonic() + 1.0
    began = time.monotonic()
    outcomes = work(pool, range(2), retries=0, drain_seconds=60.0)
    assert time.monotonic() - began < 5
    assert [(one.value, one.attempts) for one in outcomes] == [("made 0", 1), ("made 1", 1)]


def test_a_worker_that_is_not_set_up_yet_leaves_at_once() -> None:
    class Slow(ScriptedPool):
        def _call(self, handle: ScriptedHandle, method: str, *arguments: Any) -> Future[Any]:
            if method == "setup" and handle.number == 0:
                pool.gone = {0}
                return Future()
            return super()._call(handle, method, *arguments)

    pool = Slow()
    assert [one.value for one in work(pool, [0], retries=0)] == ["made 0"]
    assert pool.handles[0].killed


def test_where_the_driver_s_own_machine_goes_the_run_drains_and_says_so() -> None:
    def script(unit: Any, attempt: int) -> str:
        pool.notice = Notice("this machine goes", time.monotonic() + 0.5)
        return HANGS

    pool, effort = ScriptedPool(script), Effort()
    began = time.monotonic()
    outcomes = list(run_units(pool, Plain(), range(3), Policy(), effort))
    assert time.monotonic() - began < 5, "the notice was longer than the drain's own limit"
    assert effort.ending == "this machine goes" and effort.draining
    assert not any(one.value or one.error for one in outcomes) and len(outcomes) == 3


def test_a_store_that_is_away_for_a_while_costs_no_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "FIRST_BREAK", 0.02)
    pool = ScriptedPool(lambda unit, attempt: AWAY if attempt <= 4 else FINE)
    outcomes = work(pool, range(3), workers=2, retries=0, stall_seconds=30.0)
    assert sorted((one.unit, one.value, one.attempts) for one in outcomes) == [(n, f"made {n}", 1) for n in range(3)]


def test_a_store_that_stays_away_ends_the_stage_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "FIRST_BREAK", 0.02)
    began = time.monotonic()
    with pytest.raises(SetupFailed, match="^the store has taken and given nothing for 1 s: the store does not answer$"):
        work(ScriptedPool(lambda unit, attempt: AWAY), range(1000), workers=2, stall_seconds=0.6)
    assert 0.6 < time.monotonic() - began < 10


def test_one_shard_that_the_store_never_gives_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "FIRST_BREAK", 0.02)
    pool = ScriptedPool(lambda unit, attempt: AWAY if unit == 1 else FINE)
    outcomes = {one.unit: one for one in work(pool, range(4), retries=0, stall_seconds=0.3)}
    assert outcomes[1].error == "the store does not answer" and all(outcomes[unit].value for unit in (0, 2, 3))
