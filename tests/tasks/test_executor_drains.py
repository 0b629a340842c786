"""Workers that are to go, one by one: stuck ones are asked once more before they are killed, those on a machine that
leaves give up what they hold to others.
"""

from __future__ import annotations

from typing import Any

import pytest

from tasks import executor
from tests.scripted import DIES, FINE, GIVES_UP, HANGS, ScriptedPool, work


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
