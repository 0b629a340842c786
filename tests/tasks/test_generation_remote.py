"""What a remote engine's answers cost is paid once: they are in the ledger however the worker ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operators.language.engine import EngineSettings, Request, Sampling
from operators.language.openai_engine import OpenAIEngine
from tasks.executor import SetupFailed, WorkerDied
from tasks.generation import Generation
from tasks.ledger import Ledger
from tasks.store import Store
from tests.misbehaving_server import PASSING, MisbehavingServer, answer_to, tokenizer_of_words
from tests.remote_engine import QUICK, quick_and_without_key

CONTENT = "0" * 64


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_and_without_key(monkeypatch)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_of_words(tmp_path_factory.mktemp("words"))


class Worker:
    """One engine, its generation, and a ledger in a folder: what a rewrite's worker holds."""

    def __init__(self, words: Path, folder: Path, url: str, **changes: Any) -> None:
        given = {"request_seconds": 5.0, "patience_seconds": 20.0, "max_in_flight": 4, **changes}
        one = EngineSettings(kind="openai", urls=(url,), served_model="toy", **given)
        self.ledger = Ledger(Store(str(folder)), "0123456789ab")
        self.tokens: list[int] = []
        self.generation = Generation(OpenAIEngine(one, words, QUICK), Sampling(), self.ledger, self.tokens.append)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.generation.close()

    def kept(self, requests: dict[str, Request]) -> set[str]:
        return set(self.ledger.lookup(CONTENT, requests.keys(), "a"))


def asked(count: int) -> dict[str, Request]:
    requests = [Request(part, (("user", f"request {part}"),)) for part in range(count)]
    return {one.content()[:32]: one for one in requests}


def answered(server: MisbehavingServer, requests: dict[str, Request]) -> set[str]:
    """Keys of the requests to which a whole answer went out."""
    return {key for key, one in requests.items() if server.answered[one.messages[-1][1]]}


SCHEDULES = st.lists(st.sampled_from(["ok", *(one for one in PASSING if one != "slow"), "content_filter"]), max_size=20)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(SCHEDULES, st.integers(1, 10), st.integers(1, 4))
def test_under_any_faults_answers_are_in_the_ledger(
    words: Path, tmp_path_factory: pytest.TempPathFactory, schedule: list[str], count: int, most: int
) -> None:
    requests = asked(count)
    with (
        MisbehavingServer(schedule) as server,
        Worker(words, tmp_path_factory.mktemp("ledger"), server.url, max_in_flight=most) as worker,
    ):
        done = worker.generation.complete(CONTENT, "a", requests)
        assert done is not None and done.keys() == requests.keys()
        good = {key for key, one in done.items() if not one.error}
        assert worker.kept(requests) == good
        assert all(done[key].text == answer_to(requests[key].messages[-1][1]) for key in good)
        assert max(server.answered.values()) == 1 and sum(server.answered.values()) == count
        assert len(worker.tokens) == count


def test_a_drained_worker_keeps_what_was_sent(words: Path, tmp_path: Path) -> None:
    requests = asked(60)
    with MisbehavingServer(delay=0.3) as server, Worker(words, tmp_path, server.url) as worker:
        threading.Timer(0.5, worker.generation.drain).start()
        assert worker.generation.complete(CONTENT, "a", requests) is None
        assert 0 < len(server.asked) < 20
        assert worker.kept(requests) == answered(server, requests), "an answer that was paid for is lost"
        assert worker.generation.spent()["answers"] == len(server.asked) == len(worker.kept(requests))
        rest = {key: one for key, one in requests.items() if key not in worker.kept(requests)}
        first = len(rest)
        with Worker(words, tmp_path, server.url, max_in_flight=32) as other:
            done = other.generation.complete(CONTENT, "a", rest)
            assert done is not None and len(done) == first
        assert max(server.answered.values()) == 1 and len(server.answered) == 60


def _dies(server: MisbehavingServer, after: int) -> Iterator[None]:
    deadline = time.monotonic() + 30
    while sum(server.answered.values()) < after and time.monotonic() < deadline:
        yield
    server.stop()


def test_a_fleet_that_dies_fails_the_worker_and_loses_no_answer(words: Path, tmp_path: Path) -> None:
    requests = asked(40)
    with (
        MisbehavingServer(delay=0.05) as server,
        Worker(words, tmp_path, server.url, patience_seconds=0.5) as worker,
    ):
        killer = threading.Thread(target=lambda: [time.sleep(0.01) for _ in _dies(server, 10)], daemon=True)
        killer.start()
        with pytest.raises(WorkerDied, match="the language engine failed: engine openai: no endpoint answered"):
            worker.generation.complete(CONTENT, "a", requests)
        killer.join(10)
        kept = worker.kept(requests)
        assert len(kept) >= 10 and kept == worker_answers(worker, kept)
        assert answered(server, requests) - kept == set() or worker.generation.spent().get("answers lost", 0) > 0


def worker_answers(worker: Worker, kept: set[str]) -> set[str]:
    """The kept ones, if they are as many as the engine says it got."""
    assert worker.generation.spent()["answers"] == len(kept)
    return kept


def test_a_refused_key_ends_the_stage_and_keeps_what_came_before(words: Path, tmp_path: Path) -> None:
    requests = asked(40)
    with (
        MisbehavingServer(lambda prompt, n: "ok" if int(prompt.split()[1]) < 8 else "401") as server,
        Worker(words, tmp_path, server.url) as worker,
    ):
        with pytest.raises(SetupFailed, match="status 401: behaves like 401; set its key in"):
            worker.generation.complete(CONTENT, "a", requests)
        assert worker.kept(requests) == answered(server, requests)
        assert len(worker.kept(requests)) == 8 and len(server.asked) < 20
