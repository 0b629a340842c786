"""What came back from an engine reaches the ledger: the store refuses a block, the engine fails, the worker ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from operators.language.choose import EngineError
from operators.language.engine import Completion, FinishReason, Request, Sampling
from tasks import generation
from tasks.executor import SetupFailed
from tasks.generation import Generation
from tasks.ledger import Ledger
from tasks.store import Store

ONE, OTHER = "1" * 64, "2" * 64
MANY = 10**6


class EngineOfTheTest:
    """A fake: answers what is asked, fails at "fail", says nothing to "silent", waits for ``slow`` where a prompt
    begins so; ``held`` keeps it from ending.
    """

    name = "fake"

    def __init__(self) -> None:
        self.answered: list[str] = []
        self.held, self.slow = threading.Event(), threading.Event()
        self.held.set()

    def generate(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[tuple[Request, Completion]]:
        for request in requests:
            if request is None:
                continue
            prompt = request.messages[0][1]
            if prompt == "fail":
                raise EngineError("engine fake: the key is wrong")
            if prompt == "silent":
                continue
            if prompt.startswith("slow"):
                assert self.slow.wait(60)
            self.answered.append(prompt)
            yield request, Completion(prompt[::-1], FinishReason.STOP, 1, 1)
        self.held.wait(60)

    def describe(self) -> Mapping[str, str]:
        return {"engine": "fake"}

    def close(self) -> None:
        """Nothing to free."""


class LedgerOfAFullDisk(Ledger):
    """Refuses the first ``refusals`` blocks."""

    def append(self, content: str, name: str, completions: Mapping[str, Completion]) -> str:
        left: list[int] = self.refusals  # type: ignore[attr-defined]
        if left[0] > 0:
            left[0] -= 1
            raise OSError(28, "No space left on device")
        return super().append(content, name, completions)


class LedgerOfASlowStore(Ledger):
    """Writes nothing until ``held`` is set."""

    def append(self, content: str, name: str, completions: Mapping[str, Completion]) -> str:
        held: threading.Event = self.held  # type: ignore[attr-defined]
        assert held.wait(30)
        return super().append(content, name, completions)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "SAVE_PAUSE_SECONDS", 0.05)


def asked(*prompts: str) -> dict[str, Request]:
    requests = [Request(part, (("user", prompt),)) for part, prompt in enumerate(prompts)]
    return {one.content()[:32]: one for one in requests}


def refusing(root: Path, refusals: int) -> LedgerOfAFullDisk:
    ledger = LedgerOfAFullDisk(Store(str(root)), "0123456789ab")
    object.__setattr__(ledger, "refusals", [refusals])
    return ledger


def test_a_block_that_the_store_refused_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "BLOCK_REQUESTS", 4)
    engine, requests = EngineOfTheTest(), asked(*(f"prompt {n}" for n in range(20)))
    ledger = refusing(tmp_path, 3)
    made = Generation(engine, Sampling(), ledger, lambda tokens: None)
    done = made.complete(ONE, "a", requests)
    made.close()
    assert done is not None and done.keys() == requests.keys()
    assert ledger.refusals == [0], "nothing was refused"  # type: ignore[attr-defined]
    assert ledger.lookup(ONE, requests, "a") == done
    assert len(engine.answered) == 20


def test_a_store_that_takes_nothing_fails_the_shard_and_the_answers_stay_in_hand(tmp_path: Path) -> None:
    requests = asked("hello", "you")
    ledger = refusing(tmp_path, MANY)
    made = Generation(EngineOfTheTest(), Sampling(), ledger, lambda tokens: None)
    with pytest.raises(OSError, match="No space left"):
        made.complete(ONE, "a", requests)
    ledger.refusals[0] = 0  # type: ignore[attr-defined]
    assert made._thread.is_alive(), "the other shard's requests go on"
    assert made.complete(OTHER, "b", asked("more")) is not None
    made.close()
    assert ledger.lookup(ONE, requests, "a").keys() == requests.keys(), "what was paid for is written once it can be"


def test_a_shard_that_is_tried_again_finds_what_the_store_did_not_take_in_hand(tmp_path: Path) -> None:
    engine, requests = EngineOfTheTest(), asked("hello", "you")
    more = {**requests, **asked("hello", "you", "and", "more")}
    ledger = refusing(tmp_path, MANY)
    made = Generation(engine, Sampling(), ledger, lambda tokens: None)
    with pytest.raises(OSError, match="No space left"):
        made.complete(ONE, "a", requests)
    ledger.refusals[0] = 1  # type: ignore[attr-defined]
    done = made.complete(ONE, "a", more)
    assert done is not None and done.keys() == more.keys() == ledger.lookup(ONE, more, "a").keys()
    assert made.complete(ONE, "a", {}) == {}
    made.close()
    assert sorted(engine.answered) == ["and", "hello", "more", "you"], "an answer in hand was generated again"


def test_what_the_store_did_not_take_is_offered_again_soon(tmp_path: Path) -> None:
    """Without another shard that would bring the next block."""
    requests, ledger = asked("hello", "you"), refusing(tmp_path, MANY)
    made = Generation(EngineOfTheTest(), Sampling(), ledger, lambda tokens: None)
    with pytest.raises(OSError, match="No space left"):
        made.complete(ONE, "a", requests)
    ledger.refusals[0] = 1  # type: ignore[attr-defined]
    until(lambda: ledger.lookup(ONE, requests, "a").keys() == requests.keys())
    made.close()


def test_a_drained_worker_writes_what_comes_in_while_the_engine_is_still_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be ended before the last of its answers is there."""
    monkeypatch.setattr(generation, "DRAIN_SECONDS", 0.2)
    engine, ledger = EngineOfTheTest(), Ledger(Store(str(tmp_path)), "0123456789ab")
    engine.held.clear()
    made = Generation(engine, Sampling(), ledger, lambda tokens: None)
    requests = asked("one", "slow two", "silent")
    with ThreadPoolExecutor(1) as pool:
        shard = pool.submit(made.complete, ONE, "a", requests)
        until(lambda: engine.answered == ["one"])
        made.drain()
        assert len(ledger.lookup(ONE, requests, "a")) == 1, "drain comes back before what is in hand is written"
        engine.slow.set()
        until(lambda: len(ledger.lookup(ONE, requests, "a")) == 2)
        assert not shard.done()
        engine.held.set()
        assert shard.result(30) is None
    made.close()


def test_when_the_engine_fails_every_shard_is_saved_before_the_first_is_told(tmp_path: Path) -> None:
    """The first one that raises takes the worker's process with it."""
    engine, ledger = EngineOfTheTest(), Ledger(Store(str(tmp_path)), "0123456789ab")
    made = Generation(engine, Sampling(), ledger, lambda tokens: None)
    waiting, failing = asked("three", "four", "silent"), asked("one", "fail")

    def told(content: str, requests: dict[str, Request]) -> int:
        """Answers in the ledger, of both shards, as this one hears of the failure."""
        with pytest.raises(SetupFailed, match="the key is wrong"):
            made.complete(content, content[0], requests)
        return len(ledger.lookup(ONE, failing, "1")) + len(ledger.lookup(OTHER, waiting, "2"))

    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(told, OTHER, waiting)
        until(lambda: len(engine.answered) == 2)
        time.sleep(0.5)  # so that the two do not look in step
        one = pool.submit(told, ONE, failing)
        assert (one.result(30), other.result(30)) == (3, 3)
    made.close()


def test_what_is_in_hand_is_saved_before_the_engine_s_end_is_awaited(tmp_path: Path) -> None:
    engine, ledger = EngineOfTheTest(), Ledger(Store(str(tmp_path)), "0123456789ab")
    engine.held.clear()
    made = Generation(engine, Sampling(), ledger, lambda tokens: None)
    requests = asked("one", "two", "silent")
    with ThreadPoolExecutor(2) as pool:
        shard = pool.submit(made.complete, ONE, "a", requests)
        until(lambda: len(engine.answered) == 2)
        closing = pool.submit(made.close)
        try:
            until(lambda: len(ledger.lookup(ONE, requests, "a")) == 2)
            assert not closing.done(), "the engine had ended"
        finally:
            engine.held.set()
        closing.result(30)
        assert shard.result(30) is None


def test_a_block_on_its_way_counts_as_one_at_risk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one shard's last answers are being written, another's may not become a second block at risk."""
    monkeypatch.setattr(generation, "BLOCK_REQUESTS", 4)
    engine, ledger = EngineOfTheTest(), LedgerOfASlowStore(Store(str(tmp_path)), "0123456789ab")
    object.__setattr__(ledger, "held", threading.Event())
    made = Generation(engine, Sampling(), ledger, lambda tokens: None)
    few, many = asked("one", "two", "three"), asked(*(f"prompt {n}" for n in range(20)))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(made.complete, ONE, "a", few)
        until(lambda: len(engine.answered) == 3)
        second = pool.submit(made.complete, OTHER, "b", many)
        until(lambda: len(engine.answered) == 4)
        time.sleep(0.3)
        at_risk = len(engine.answered)
        ledger.held.set()  # type: ignore[attr-defined]
        assert first.result(30) is not None and second.result(30) is not None
    made.close()
    assert at_risk == 4, f"{at_risk} answers are in memory alone"
    assert len(engine.answered) == 23


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)
