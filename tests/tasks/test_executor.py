"""The scheduling loop alone, over an in-memory pool whose workers do what a script says."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks import executor
from tasks.executor import Effort, Outcome, Policy, SetupFailed, WorkerDied, run_units
from tasks.local_executor import LocalPool
from tests.scripted import DIES, FAILS, FINE, HANGS, PERMANENT, Plain, ScriptedHandle, ScriptedPool, work


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "POLL_SECONDS", 0.01)


@pytest.mark.parametrize(("workers", "concurrency"), [(1, 1), (3, 1), (2, 4)])
def test_no_worker_ever_holds_more_than_its_concurrency(workers: int, concurrency: int) -> None:
    pool = ScriptedPool()
    outcomes = work(pool, range(20), Plain(concurrency), workers=workers)
    assert sorted(one.unit for one in outcomes) == list(range(20))
    assert all(one.value == f"made {one.unit}" and one.attempts == 1 for one in outcomes)
    assert len(pool.handles) == workers
    assert [handle.most_held for handle in pool.handles] == [concurrency] * workers


def test_few_units_are_spread_over_no_more_workers_than_they_need() -> None:
    pool = ScriptedPool()
    work(pool, range(3), Plain(concurrency=4), workers=9)
    assert [handle.most_held for handle in pool.handles] == [1, 1, 1]


@pytest.mark.parametrize("retries", [0, 1, 3])
@pytest.mark.parametrize("ends", [FAILS, DIES])
def test_tries_are_bounded_and_the_last_error_is_told(retries: int, ends: str) -> None:
    pool = ScriptedPool(lambda unit, attempt: ends if unit == 1 else FINE)
    outcomes = {one.unit: one for one in work(pool, range(3), workers=2, retries=retries)}
    assert pool.tries[1] == retries + 1 == outcomes[1].attempts
    assert outcomes[1].error == ("RuntimeError: failed" if ends == FAILS else "gone")
    assert outcomes[0].value and outcomes[2].value


def test_a_permanent_error_is_not_tried_again() -> None:
    pool = ScriptedPool(lambda unit, attempt: PERMANENT if unit == 1 else FINE)
    outcomes = {one.unit: one for one in work(pool, range(3), retries=5)}
    assert pool.tries[1] == 1 and outcomes[1].error == "bad shard"


def test_units_lost_together_are_tried_alone_and_only_the_guilty_one_fails() -> None:
    pool = ScriptedPool(lambda unit, attempt: DIES if unit == "bomb" else FINE)
    outcomes = {one.unit: one for one in work(pool, ["bomb", *"abcdefg"], Plain(concurrency=4), retries=1)}
    assert outcomes["bomb"].error == "gone" and outcomes["bomb"].attempts == 2
    assert {outcomes[unit].attempts for unit in "abcdefg"} == {1}, "a neighbour was charged for it"
    assert all(outcomes[unit].value for unit in "abcdefg")
    assert pool.beside["bomb"] == [{"a", "b", "c"}, set(), set()]
    assert pool.beside["a"] == pool.beside["b"] == pool.beside["c"] == [set()]


def test_a_worker_that_stalls_is_killed_and_its_units_are_tried_again() -> None:
    pool = ScriptedPool(lambda unit, attempt: HANGS if unit == 0 and not pool.handles[0].killed else FINE)
    began = time.monotonic()
    outcomes = work(pool, range(4), retries=1, stall_seconds=0.2)
    assert 0.2 < time.monotonic() - began < 10
    assert pool.handles[0].killed and len(pool.handles) == 2
    assert {one.unit: one.attempts for one in outcomes} == {0: 2, 1: 1, 2: 1, 3: 1}


def test_a_unit_that_always_stalls_fails_and_its_neighbour_does_not() -> None:
    pool = ScriptedPool(lambda unit, attempt: HANGS if unit == 0 else FINE)
    outcomes = {one.unit: one for one in work(pool, [0, 1], Plain(concurrency=2), retries=1, stall_seconds=0.1)}
    assert "no progress" in outcomes[0].error and outcomes[0].attempts == 2
    assert outcomes[1].value == "made 1" and outcomes[1].attempts == 1


def test_a_worker_dead_and_stalled_at_once_is_lost_once() -> None:
    """Its sign of life says that it died in the same moment in which its time is over."""

    class Dead(ScriptedPool):
        def _call(self, handle: ScriptedHandle, method: str, *arguments: Any) -> Future[Any]:
            future = super()._call(handle, method, *arguments)
            if method == "beat" and handle.number == 0:
                future = Future()
                future.set_exception(WorkerDied("gone"))
            return future

    pool = Dead(lambda unit, attempt: HANGS if not pool.handles[0].killed else FINE)
    outcomes = work(pool, [0], stall_seconds=0.0, retries=1)
    assert [(one.unit, one.value) for one in outcomes] == [(0, "made 0")]


def test_what_a_worker_finished_before_it_died_is_kept() -> None:
    class Late(ScriptedPool):
        def wait(self, futures: Sequence[Future[Any]], seconds: float) -> list[Future[Any]]:
            handle = self.handles[0]
            if {"first", "second"} <= set(handle.open):
                handle.open.pop("first").set_exception(WorkerDied("gone"))
                handle.open.pop("second").set_result("made second")
            return super().wait(futures, seconds)

    outcomes = {one.unit: one for one in work(Late(), ["first", "second"], Plain(concurrency=2))}
    assert outcomes["second"].value == "made second" and outcomes["second"].attempts == 1
    assert outcomes["first"].value == "made first"


def test_one_worker_without_set_up_does_not_end_the_work_of_the_others(caplog: pytest.LogCaptureFixture) -> None:
    bad = OSError("no room on this machine")
    pool = ScriptedPool(setups=[None, bad, bad, bad, bad, bad, bad])
    outcomes = work(pool, range(30), workers=2, retries=1)
    assert all(one.value for one in outcomes) and len(outcomes) == 30
    assert len(pool.handles) == 1 + 2, "it was tried without end"
    assert "no room on this machine; going on with 1" in caplog.text


def test_a_set_up_that_cannot_work_waits_for_the_others_first() -> None:
    pool = ScriptedPool(setups=[ValueError("broken here"), None])
    assert all(one.value for one in work(pool, range(5), workers=2))
    with pytest.raises(SetupFailed, match="broken here"):
        work(ScriptedPool(setups=[ValueError("broken here")] * 9), range(5), workers=2)


def test_no_set_up_ends_the_run_after_a_bounded_number_of_tries() -> None:
    pool = ScriptedPool(setups=[OSError("busy")] * 99)
    with pytest.raises(SetupFailed, match="a worker could not be set up: busy"):
        work(pool, range(5), workers=1, retries=2)
    assert len(pool.handles) == 3


def test_a_passing_trouble_at_set_up_is_tried_again() -> None:
    pool = ScriptedPool(setups=[OSError("busy"), OSError("busy")])
    assert all(one.value for one in work(pool, range(5), retries=2))
    assert len(pool.handles) == 3


def test_a_set_up_that_never_ends_is_given_up() -> None:
    class Slow(ScriptedPool):
        def _call(self, handle: ScriptedHandle, method: str, *arguments: Any) -> Future[Any]:
            return Future() if method == "setup" else super()._call(handle, method, *arguments)

    with pytest.raises(SetupFailed, match="not ready after 0 s"):
        work(Slow(), range(5), retries=1, setup_seconds=0.05)


def test_the_last_worker_lost_is_replaced_even_after_others_could_not_be_set_up() -> None:
    bad = OSError("busy")
    pool = ScriptedPool(lambda unit, attempt: DIES if (unit, attempt) == (3, 1) else FINE, [None, bad, bad, None])
    outcomes = work(pool, range(8), workers=2, retries=1)
    assert sorted(one.unit for one in outcomes if one.value) == list(range(8))


def test_a_stop_starts_nothing_more_and_keeps_what_is_finished() -> None:
    pool = ScriptedPool()
    count = itertools.count()
    outcomes = work(pool, range(10), Plain(concurrency=2), stop=lambda effort: next(count) >= 3)
    assert sorted(one.unit for one in outcomes) == list(range(10))
    made = [one for one in outcomes if one.value]
    assert 0 < len(made) < 10 and not any(one.error for one in outcomes)
    assert pool.handles[0].drained and sum(pool.tries.values()) == len(made)


def test_what_does_not_drain_in_time_is_given_up() -> None:
    pool = ScriptedPool(lambda unit, attempt: HANGS)
    count = itertools.count()
    outcomes = work(pool, range(4), workers=2, drain_seconds=0.1, stop=lambda effort: next(count) >= 3)
    assert sorted(one.unit for one in outcomes) == list(range(4))
    assert not any(one.value or one.error for one in outcomes)
    assert all(handle.killed for handle in pool.handles)


ENDS = st.sampled_from([FINE, FINE, FINE, FAILS, DIES, PERMANENT])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ends=st.lists(st.lists(ENDS, min_size=1, max_size=4), max_size=12),
    setups=st.lists(st.sampled_from([None, None, OSError("busy")]), max_size=8),
    workers=st.integers(1, 4),
    concurrency=st.integers(1, 3),
    retries=st.integers(0, 3),
    stop_after=st.one_of(st.none(), st.integers(0, 30)),
)
def test_every_unit_has_one_outcome_whatever_happens(
    ends: list[list[str]],
    setups: list[Exception | None],
    workers: int,
    concurrency: int,
    retries: int,
    stop_after: int | None,
) -> None:
    pool = ScriptedPool(lambda unit, attempt: ends[unit][min(attempt, len(ends[unit])) - 1], setups)
    count = itertools.count()
    seen: list[Outcome] = []
    try:
        for outcome in run_units(
            pool,
            Plain(concurrency),
            range(len(ends)),
            Policy(workers=workers, retries=retries, drain_seconds=5.0, stall_seconds=5.0),
            Effort(),
            lambda effort: stop_after is not None and next(count) >= stop_after,
        ):
            seen.append(outcome)
    except SetupFailed:
        assert any(setups)
        assert len({one.unit for one in seen}) == len(seen)
        return
    assert sorted(one.unit for one in seen) == list(range(len(ends)))
    for one in seen:
        assert one.attempts <= retries + 1
        # lost with others once, which is not charged, then on its own
        assert pool.tries[one.unit] <= retries + 2
        if one.value is not None:
            assert not one.error
        elif one.error:
            assert one.error == "bad shard" or one.attempts == retries + 1
        else:
            assert stop_after is not None
    assert all(handle.killed for handle in pool.handles), "a worker was left running"


def test_threads_do_the_same() -> None:
    outcomes = work(LocalPool(), range(20), Plain(concurrency=2), workers=3)
    assert sorted((one.unit, one.value) for one in outcomes) == [(unit, f"made {unit}") for unit in range(20)]
