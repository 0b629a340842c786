"""The openai engine against a server that misbehaves on purpose: every request gets one answer, and nothing leaks."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operators.language.choose import EngineError
from operators.language.engine import FinishReason, RemoteEngine, Request, Sampling
from operators.language.openai_client import Limits
from tests.misbehaving_server import FINAL, PASSING, MisbehavingServer, tokenizer_of_words
from tests.remote_engine import complete, engine, prompts, quick_and_without_key, text_of

CANARY = "sk-canary-5fb1c2a97e"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_and_without_key(monkeypatch)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_of_words(tmp_path_factory.mktemp("words"))


def test_answers_belong_to_their_requests_and_are_accounted(words: Path) -> None:
    with MisbehavingServer(delay=0.01) as server, engine(words, server) as made:
        assert isinstance(made, RemoteEngine)
        requests = prompts(30)
        answers = complete(made, requests)
        assert {part: one.text for part, one in answers.items()} == {one.part: text_of(one) for one in requests}
        assert server.most_at_once <= 8
        tokens = sum(len(text_of(one).split()) for one in requests)
        assert made.spent() == {
            "requests sent": 30,
            "answers": 30,
            "prompt tokens paid": tokens + 90,
            "completion tokens paid": tokens,
        }
        assert server.most_at_once > 4, "requests were sent one by one"


def test_what_is_sent(words: Path) -> None:
    sampling = Sampling(max_tokens=99, temperature=0.7, top_p=0.9, stop=("END",))
    one = Request(0, (("system", "Be brief."), ("user", "hello")), max_tokens=12, seed=2**63 + 7)
    with MisbehavingServer() as server, engine(words, server) as made:
        complete(made, [one], sampling)
        complete(made, [one])
    assert server.asked[0].body == {
        "model": "toy",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
        "max_tokens": 12,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["END"],
    }
    assert server.asked[1].body["temperature"] == 0 and "seed" not in server.asked[1].body
    assert server.asked[0].authorization == ""


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_retried(words: Path, fault: str) -> None:
    with MisbehavingServer([fault], slow=1.5) as server, engine(words, server, request_seconds=0.5) as made:
        [request] = prompts(1)
        answer = complete(made, [request])[0]
        assert answer.text == text_of(request) and answer.finish_reason is FinishReason.STOP
        assert [one.behaviour for one in server.asked] == [fault, "ok"]
        assert made.spent()["requests sent"] == 2 and made.spent()["retries"] == 1 and made.spent()["answers"] == 1
        told = not fault.startswith(("4", "5", "html_502"))
        assert made.spent().get("answers lost", 0) == told, "an answer that may have been paid for is counted as lost"


@pytest.mark.parametrize("strange", FINAL)
def test_a_strange_answer_is_an_answer(words: Path, strange: str) -> None:
    with MisbehavingServer([strange]) as server, engine(words, server) as made:
        requests = prompts(2)
        answers = complete(made, requests)
        first = next(one for one in server.asked if one.behaviour == strange)
        [part] = [one.part for one in requests if one.messages[-1][1] == first.prompt]
        answer = answers[part]
        assert answer.finish_reason == FINAL[strange]
        assert bool(answer.text) == (FINAL[strange] != "error") == (not answer.error)
        assert len(server.asked) == 2, "an answer was asked for twice"
        if strange == "no_usage":
            assert answer.completion_tokens == len(answer.text.split())
            assert made.spent()["answers without usage"] == 1
        if strange == "content_filter":
            assert "content filter" in answer.error and answer.prompt_tokens > 0


SCHEDULES = st.lists(st.sampled_from([*PASSING, "ok", *(one for one in FINAL if one != "400_too_long")]), max_size=30)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(SCHEDULES, st.integers(1, 6), st.integers(1, 12), st.integers(1, 2))
def test_any_schedule_of_faults(words: Path, schedule: list[str], most: int, count: int, servers: int) -> None:
    schedule = ["500" if one == "slow" else one for one in schedule]
    with MisbehavingServer(schedule) as first, MisbehavingServer(schedule[::-1]) as second:
        fleet_of = (first, second)[:servers]
        with engine(words, *fleet_of, max_in_flight=most, patience_seconds=60.0) as made:
            requests = prompts(count)
            answers = complete(made, requests)
            for request in requests:
                answer = answers[request.part]
                assert answer.text == text_of(request) or answer.error
            whole: Counter[str] = sum((one.answered for one in fleet_of), Counter())
            assert whole == Counter(one.messages[-1][1] for one in requests), "an answer was asked for again"
            sent = sum(len(one.asked) for one in fleet_of)
            assert made.spent()["answers"] == count and made.spent()["requests sent"] == sent
            assert made.spent().get("retries", 0) == sent - count
            assert max(one.most_at_once for one in fleet_of) <= most


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("401", r"http://127.0.0.1:\d+/v1: status 401: behaves like 401; set its key in \$WINNOW_ENGINE_API_KEY"),
        ("403", r"status 403: behaves like 403; set its key"),
        ("404", r"status 404: behaves like 404 at /chat/completions; is the base URL right .*'toy' still served"),
        ("307", r"status 307: .*is the base URL right"),
        ("422", r"it refuses every request \(status 422: behaves like 422\)"),
        ("400", r"it refuses every request \(status 400: behaves like 400\)"),
    ],
)
def test_what_no_retry_mends_stops_the_stage_after_what_was_sent(words: Path, status: str, told: str) -> None:
    with MisbehavingServer(
        lambda prompt, n: "ok" if "request 0 " in prompt and status < "405" and status != "400" else status
    ) as server:
        with engine(words, server, max_in_flight=3) as made, pytest.raises(EngineError, match=told) as raised:
            list(made.generate(prompts(50), Sampling()))
        assert "\n" not in str(raised.value)
        assert len(server.asked) < 10, "it went on sending"


def test_a_refusal_of_one_request_is_that_rows(words: Path) -> None:
    server = MisbehavingServer(lambda prompt, n: "400" if "request 1 " in prompt else "ok")
    with server, engine(words, server) as made:
        answers = complete(made, prompts(4))
    assert [part for part, one in answers.items() if one.error] == [1]
    assert answers[1].error == "status 400: behaves like 400"


def test_a_drain_waits_for_what_was_sent_and_sends_no_more(words: Path) -> None:
    with MisbehavingServer(delay=0.4) as server, engine(words, server, max_in_flight=4) as made:
        threading.Timer(0.2, made.drain).start()
        answers = list(made.generate(prompts(100), Sampling()))
        assert len(answers) == len(server.asked) == 4
        assert all(one.text == text_of(request) for request, one in answers)
    with MisbehavingServer(["500"] * 99) as server:
        slow = Limits(first_break=60.0, longest_break=60.0)
        with engine(words, server, max_in_flight=4, limits=slow) as made:
            threading.Timer(0.3, made.drain).start()
            began = time.monotonic()
            assert list(made.generate(prompts(4), Sampling())) == []
            assert time.monotonic() - began < 20, "it waited for the break to end"
    with (
        MisbehavingServer(delay=30) as server,
        engine(words, server, request_seconds=60, limits=Limits(drain=0.3)) as made,
    ):
        threading.Timer(0.1, made.drain).start()
        assert list(made.generate(prompts(2), Sampling())) == [], "a drain has a limit"
        assert made.spent() == {"requests sent": 2, "answers lost": 2}


def test_closing_the_iterator_or_the_engine_frees_everything(words: Path) -> None:
    with MisbehavingServer(delay=0.05) as server:
        with engine(words, server) as made:
            running = made.generate(prompts(50), Sampling())
            next(iter(running))
            with pytest.raises(RuntimeError, match="in use"):
                next(iter(made.generate(prompts(1), Sampling())))
            running.close()  # type: ignore[attr-defined]
            assert complete(made, prompts(2))[1].text
        assert not [one for one in threading.enumerate() if one.name == "winnow-openai"]
        with pytest.raises(RuntimeError, match="closed"):
            next(iter(made.generate(prompts(1), Sampling())))


def test_requests_are_pulled_lazily(words: Path) -> None:
    pulled: list[int] = []

    def source() -> Iterator[Request | None]:
        for one in prompts(20):
            pulled.append(one.part)
            yield one
            yield None

    with MisbehavingServer(delay=0.05) as server, engine(words, server, max_in_flight=3) as made:
        seen = 0
        for _ in made.generate(source(), Sampling()):
            seen += 1
            assert len(pulled) - seen <= 3
        assert seen == 20


def test_text_that_is_no_unicode_and_prompts_beyond_the_context(words: Path) -> None:
    with MisbehavingServer() as server, engine(words, server, max_model_len=64) as made:
        answers = complete(
            made,
            [Request(0, (("user", "a\ud800b"),)), Request(1, (("user", "word " * 20),)), Request(2, (("user", "a"),))],
        )
        assert "cannot be sent" in answers[0].error and answers[1].text and answers[2].text
        budgets = {one.prompt: one.body["max_tokens"] for one in server.asked}
        assert budgets["a"] == 64 - 40 - 1, "a budget ends where the context does"
        assert budgets["word " * 20] == 64 - 40 - 20


def test_the_key_is_sent_and_shown_nowhere(
    words: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("WINNOW_ENGINE_API_KEY", f" {CANARY} ")
    limits = Limits(first_break=0.01, longest_break=0.02, attempts=2)
    said = []
    server = MisbehavingServer(lambda prompt, n: "echo_key" if "request 1 " in prompt else "ok", key=CANARY)
    with server, engine(words, server, limits=limits) as made:
        answers = complete(made, prompts(3))
        assert {one.authorization for one in server.asked} == {f"Bearer {CANARY}"}
        assert "[key]" in answers[1].error, "the server repeats the key, and the error tells what it said"
        said = [
            repr(made._settings),
            repr(made._key),
            repr(vars(made)),
            repr(vars(made._client)),
            *map(str, answers.values()),
        ]
        said += [str(made.describe()), str(made.spent())]
    monkeypatch.setenv("WINNOW_ENGINE_API_KEY", CANARY + "x")
    with MisbehavingServer(key=CANARY) as server, engine(words, server) as made:
        with pytest.raises(
            EngineError, match="status 401: Incorrect API key provided: Bearer .key.; is the key"
        ) as raised:
            complete(made, prompts(3))
        said.append(str(raised.value))
    monkeypatch.setenv("WINNOW_ENGINE_API_KEY", "two words")
    with pytest.raises(EngineError, match="holds blanks") as bad, engine(words, "http://127.0.0.1:1/v1"):  # type: ignore[arg-type]
        pass
    said += [str(bad.value), caplog.text, *capfd.readouterr()]
    assert [one for one in said if CANARY in one or "two words" in one] == []
