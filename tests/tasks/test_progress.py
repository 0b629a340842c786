"""Time left, on simulated stages: workers that take the next shard whenever they are free."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.aligned import Unit
from tasks.dataset import Shard
from tasks.progress import Eta, Meter, weights
from tasks.records import Record
from tasks.summary import Accounts, Status
from tasks.workers import Effort

SETTINGS = settings(max_examples=150, deadline=None)
SIZES = st.lists(st.integers(1_000, 1_000_000), min_size=3, max_size=60)


@dataclass(frozen=True)
class Moment:
    """What a simulated stage looks like: at ``now``, with the truth beside it."""

    now: float
    eta: float | None
    truth: float
    longest: float
    made: int


def simulated(sizes: list[int], workers: int, noise: list[float], step: float) -> Iterator[Moment]:
    """Bytes per second is 1,000, of each shard times its ``noise``. Yields a moment every ``step`` of the whole."""
    seconds = [size / 1000 * noise[number % len(noise)] for number, size in enumerate(sizes)]
    ends: list[float] = []
    spans = []
    for one in seconds:
        start = heapq.heappop(ends) if len(ends) == workers else 0.0
        spans.append((start, start + one))
        heapq.heappush(ends, start + one)
    total = max(end for _, end in spans)
    eta = Eta({str(number): float(size) for number, size in enumerate(sizes)})
    told: set[int] = set()
    for tick in range(1, int(1 / step)):
        now = total * tick * step
        for number, (_, end) in sorted(enumerate(spans), key=lambda pair: pair[1][1]):
            if end <= now and number not in told:
                told.add(number)
                eta.ended(str(number), seconds[number])
        held = {str(number): now - start for number, (start, end) in enumerate(spans) if start <= now < end}
        yield Moment(now, eta.seconds(held, workers), total - now, max(seconds), len(told))


@SETTINGS
@given(SIZES, st.integers(1, 8), st.sampled_from([0.02, 0.05]))
def test_at_an_even_pace_it_is_off_by_less_than_a_shard(sizes: list[int], workers: int, step: float) -> None:
    """However uneven the shards are: the pace is by bytes. What is uncertain is who takes the last ones."""
    for moment in simulated(sizes, workers, [1.0], step):
        if moment.eta is not None:
            assert moment.eta >= 0
            assert abs(moment.eta - moment.truth) <= 1.1 * moment.longest + 1e-6


@SETTINGS
@given(SIZES, st.integers(1, 8), st.lists(st.floats(0.7, 1.3), min_size=1, max_size=20))
def test_at_an_uneven_pace_the_error_shrinks_with_what_is_left(
    sizes: list[int], workers: int, noise: list[float]
) -> None:
    for moment in simulated(sizes, workers, noise, 0.04):
        if moment.eta is not None:
            # the pace learnt may be off from 0.7/1.3 to 1.3/0.7, and no more
            assert abs(moment.eta - moment.truth) <= 0.9 * moment.truth + 2.1 * moment.longest + 1e-6


@SETTINGS
@given(SIZES, st.integers(1, 4))
def test_it_can_be_said_soon_and_not_before_anything_is_known(sizes: list[int], workers: int) -> None:
    for moment in simulated(sizes, workers, [1.0], 0.05):
        assert moment.eta is None or moment.made >= 1
        assert moment.eta is not None or moment.made < 2


@SETTINGS
@given(SIZES, st.integers(1, 4), st.integers(1, 1000))
def test_shards_found_finished_change_nothing(sizes: list[int], workers: int, found: int) -> None:
    """A thousand shards that an earlier run made say nothing of this run's pace."""
    clock = [0.0]
    alone, beside = (Meter("toy", units(sizes), len(sizes) + n, n, 0, lambda: clock[0]) for n in (0, found))
    for number, size in enumerate(sizes):
        clock[0] += size / 1000
        effort = Effort(alive=workers, most=workers)
        for meter in (alone, beside):
            meter.finished(f"{number}", record(size / 1000))
        assert alone.progress(effort).eta_seconds == beside.progress(effort).eta_seconds
        assert beside.progress(effort).done == found + number + 1


def test_between_two_shards_it_falls_and_does_not_rise() -> None:
    eta = Eta({str(number): 100.0 for number in range(10)})
    eta.ended("0", 10.0)
    eta.ended("1", 10.0)
    said = [eta.seconds({"2": had}, 1) for had in (0.0, 2.0, 5.0, 9.0)]
    assert said == [80.0, 78.0, 75.0, 71.0]
    late = [eta.seconds({"2": had}, 1) for had in (20.0, 40.0, 100.0)]
    assert all(one is not None and one > 70 for one in late)  # overdue: longer by a tenth of what it took


def test_the_end_waits_for_the_largest_shard() -> None:
    eta = Eta({"a": 10.0, "b": 10.0, "small": 10.0, "huge": 1000.0})
    eta.ended("a", 1.0)
    eta.ended("b", 1.0)
    assert eta.seconds({"small": 0.0, "huge": 0.0}, 4) == pytest.approx(100.0)


def test_a_failed_and_an_adopted_shard_leave_the_work_and_not_the_pace() -> None:
    eta = Eta({str(number): 100.0 for number in range(6)})
    eta.ended("0", 10.0)
    eta.ended("1", 10.0)
    eta.ended("2")
    eta.ended("3")
    assert eta.seconds({}, 1) == pytest.approx(20.0)


def test_nothing_is_said_while_no_worker_is_there_or_the_stage_drains() -> None:
    meter = Meter("toy", units([100] * 4), 4, 0, 0)
    for number in range(2):
        meter.finished(str(number), record(1.0))
    assert meter.progress(Effort(alive=0, most=0)).eta_seconds is None
    assert meter.progress(Effort(alive=1, most=1, draining=True)).eta_seconds is None
    assert meter.progress(Effort(alive=1, most=1)).eta_seconds == pytest.approx(2.0)
    assert meter.progress(Effort(), Status.DONE).eta_seconds == 0.0


def test_shards_of_unknown_size_count_the_same() -> None:
    known = units([5, 50])
    assert weights(known) == {"0": 5.0, "1": 50.0}
    assert weights([*known, Unit("2", (Shard("2", "2"),))]) == {"0": 1.0, "1": 1.0, "2": 1.0}


def test_the_pace_is_that_of_the_last_half_minute_and_not_of_loading_a_model() -> None:
    clock = [0.0]
    meter = Meter("toy", units([100] * 4), 4, 0, 0, lambda: clock[0])
    effort = Effort(alive=1, most=1)
    for second in range(100):
        clock[0] = float(second)
        effort.rows = max(0, second - 40) * 7
        told = meter.progress(effort)
        assert (told.rows_per_second is None) == (second < 41)
        if told.rows_per_second is not None:
            assert told.rows_per_second == pytest.approx(7.0)
    for second in range(100, 160):
        clock[0] = float(second)
        told = meter.progress(effort)
    assert told.rows_per_second == 0.0


def test_what_it_says_of_the_last_movement_is_when_something_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(100))
    monkeypatch.setattr("tasks.progress.time.time", lambda: float(next(times)))
    meter = Meter("toy", units([100]), 1, 0, 0)
    effort = Effort()
    first = meter.progress(effort).moved
    assert meter.progress(effort).moved == first
    effort.steps += 1
    assert meter.progress(effort).moved > first


def units(sizes: list[int]) -> list[Unit]:
    return [Unit(str(n), (Shard(str(n), str(n), size=size),)) for n, size in enumerate(sizes)]


def record(seconds: float, **more: Any) -> Record:
    accounts = Accounts(rows_in=1, outcomes={"ok": 1}, rows_out=1, outputs={"ok": 1})
    empty = {"stage": "", "fingerprint": "", "name": "", "key": "", "path": "", "sha256": ""}
    return Record(**empty, bytes=1, rows=1, accounts=accounts, inputs=[], seconds=seconds, **more)
