"""A fleet whose servers come, go and ask for breaks; rates; and whose fault it is that a request has no answer."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from operators.language.engine import FinishReason, Request, Sampling
from operators.language.fleet import FleetDown
from operators.language.openai_client import Limits
from tests.conftest import free_port
from tests.misbehaving_server import MisbehavingServer, tokenizer_of_words
from tests.remote_engine import complete, engine, prompts, quick_and_without_key, text_of


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_and_without_key(monkeypatch)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_of_words(tmp_path_factory.mktemp("words"))


def test_retry_after_is_honoured_by_all_requests(words: Path) -> None:
    with MisbehavingServer(["503_date"]) as server, engine(words, server, max_in_flight=2) as made:
        complete(made, prompts(6))
        assert [one.behaviour for one in server.asked].count("503_date") == 1
    with MisbehavingServer(["pause_second"], delay=0.05) as server, engine(words, server, max_in_flight=3) as made:
        complete(made, prompts(30))
        gaps = [b.at - a.at for a, b in itertools.pairwise(server.asked)]
        assert max(gaps[2:]) > 0.8, "the others went on while the server asked for a break"


def test_rates_hold(words: Path) -> None:
    with MisbehavingServer() as server, engine(words, server, requests_per_minute=600) as made:
        complete(made, prompts(25))
        took = server.asked[-1].at - server.asked[0].at
        # ten a second, of which one second's worth is saved up: 15 more take 1.5 s
        assert 1.3 < took < 6
    second = 800
    long = [Request(part, (("user", "word " * 100),)) for part in range(10)]
    with MisbehavingServer() as server, engine(words, server, tokens_per_minute=60 * second) as made:
        complete(made, long, Sampling(max_tokens=100))
        before_the_last = 9 * 203  # as the server counts; one second's worth of it was saved up
        assert server.asked[-1].at - server.asked[0].at > 0.9 * (before_the_last - second) / second
    with MisbehavingServer() as server, engine(words, server, tokens_per_minute=60 * 100) as made:
        complete(made, prompts(8), Sampling(max_tokens=1000))
        # each might take ten seconds' worth, and none does
        assert server.asked[-1].at - server.asked[0].at < 30, "what was not used was not given back"


def test_a_sick_endpoint_is_left_out_and_comes_back(words: Path) -> None:
    with MisbehavingServer(delay=0.01) as well, MisbehavingServer(delay=0.01) as sick:
        sick.stop()
        with engine(words, well, sick, max_in_flight=4) as made:
            complete(made, prompts(40))
            assert len(well.asked) == 40 and not sick.asked
            assert made.spent()["retries"] < 12, "it was asked again and again"
            sick.start()
            deadline = time.monotonic() + 20
            while not sick.asked and time.monotonic() < deadline:
                complete(made, prompts(8))
            before = len(sick.asked)
            complete(made, prompts(40))
            assert len(sick.asked) - before > 10, "it gets no share of the requests"


TOY = {"id": "toy", "root": "/models/toy", "max_model_len": 4096}
OTHERS = {
    "serves toy": ({**TOY, "root": "/models/toy-2"}, r"it serves toy \(toy-2\), and the others toy \(toy\)"),
    "does not serve": ({**TOY, "id": "gpt-5"}, "does not serve 'toy'; it serves gpt-5"),
    "takes": ({**TOY, "max_model_len": 512}, "it takes 512 tokens, and the others 1024"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_server_that_comes_later_as_another_one_gets_no_request(words: Path, what: str) -> None:
    model, told = OTHERS[what]
    changes = {"served_root": "toy", "max_model_len": 1024, "patience_seconds": 3.0}
    with MisbehavingServer(delay=0.01) as well, MisbehavingServer(delay=0.01, models=(model,)) as other:
        with engine(words, well, other, unmet=(other.url,), **changes) as made:
            complete(made, prompts(30))
            assert len(well.asked) == 30 and not other.asked
            assert made.spent()["other models refused"] == 1, "it was asked again and again"
            well.stop()
            with pytest.raises(FleetDown, match=told):
                list(made.generate(prompts(2), Sampling()))
        if what == "takes":
            with engine(words, other, unmet=(other.url,), **{**changes, "max_model_len": 512}) as made:
                complete(made, prompts(2))
                assert len(other.asked) == 2, "what fits is refused"


def test_a_server_that_comes_back_as_another_one_gets_no_request(words: Path) -> None:
    well, other = MisbehavingServer(delay=0.01), MisbehavingServer(delay=0.01)
    with well, other, engine(words, well, other, served_root="toy", max_in_flight=4) as made:
        complete(made, prompts(20))
        before = len(other.asked)
        assert before > 5
        other.stop()
        deadline = time.monotonic() + 30
        while made._client._fleet.endpoints[1].met and time.monotonic() < deadline:
            complete(made, prompts(8))
        other.models = ({**TOY, "root": "/models/toy-2"},)
        other.start()
        while not made.spent().get("other models refused") and time.monotonic() < deadline:
            complete(made, prompts(4))
        complete(made, prompts(20))
        assert made.spent()["other models refused"] == 1 and len(other.asked) == before


def test_a_server_that_serves_the_model_no_more_is_left_out_and_the_others_go_on(words: Path) -> None:
    gone = MisbehavingServer(lambda prompt, n: "404", models=({**TOY, "id": "gpt-5"},))
    with MisbehavingServer(delay=0.01) as well, gone, engine(words, well, gone, max_in_flight=4) as made:
        complete(made, prompts(30))
        assert len(well.asked) == 30 and 0 < len(gone.asked) <= 4


def test_a_fleet_that_comes_back_in_time_loses_nothing(words: Path) -> None:
    with MisbehavingServer(delay=0.02) as server, engine(words, server, max_in_flight=4) as made:
        back = threading.Timer(1.0, server.start)
        seen: list[Request] = []
        for request, completion in made.generate(prompts(40), Sampling()):
            seen.append(request)
            assert completion.text == text_of(request)
            if len(seen) == 10:
                server.stop()
                back.start()
        assert len(seen) == 40 and all(count == 1 for count in Counter(one.part for one in seen).values())
        assert max(server.answered.values()) == 1 or made.spent()["answers lost"] >= sum(server.answered.values()) - 40


def test_a_fleet_that_stays_away_fails_the_worker_after_the_patience(words: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with engine(words, url, patience_seconds=0.5) as made:  # type: ignore[arg-type]
        began = time.monotonic()
        with pytest.raises(FleetDown, match=r"no endpoint answered for 0 s \(http://127.0.0.1:\d+/v1: ConnectError"):
            list(made.generate(prompts(4), Sampling()))
        assert time.monotonic() - began < 10


def test_a_request_that_is_never_answered_is_its_own_fault_only(words: Path) -> None:
    limits = Limits(connect=2.0, first_break=0.01, longest_break=0.02, attempts=4)
    poison = prompts(6)[3].messages[-1][1]
    server = MisbehavingServer(lambda prompt, n: "500" if prompt == poison else "ok")
    with server, engine(words, server, limits=limits) as made:
        answers = complete(made, prompts(6))
        assert [part for part, one in answers.items() if one.error] == [3]
        assert "given up after 4 attempts: status 500: behaves like 500" in answers[3].error
        # alone, a trial shows that it is not the server's
        alone = complete(made, [prompts(6)[3]])
        assert alone[3].finish_reason is FinishReason.ERROR
        assert server.answered["Say yes."] == 1


@pytest.mark.parametrize("fault", ["500", "429", "drop", "pause_hour"])
def test_a_fleet_that_answers_nobody_is_down(words: Path, fault: str) -> None:
    limits = Limits(connect=2.0, first_break=0.01, longest_break=0.02, attempts=4)
    server = MisbehavingServer(lambda prompt, n: fault)
    with server, engine(words, server, limits=limits, patience_seconds=0.7) as made:
        began = time.monotonic()
        with pytest.raises(FleetDown, match=r"no endpoint answered for 1 s|no request is answered"):
            list(made.generate(prompts(3), Sampling()))
        assert 0.3 < time.monotonic() - began < 20
        assert len(server.asked) > 1
