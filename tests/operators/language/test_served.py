"""What a fleet says it serves: asked before a run, and what of it enters the identity."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from operators.language import served
from operators.language.choose import EngineError, choose, identity
from operators.language.engine import EngineSettings
from operators.language.openai_api import base_urls, retry_after
from operators.language.served import agreed
from tests.conftest import free_port
from tests.misbehaving_server import MisbehavingServer


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WINNOW_ENGINE_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def model(name: str = "toy", root: str = "/a/models/toy-1b", context: int | None = 4096, **more: Any) -> dict[str, Any]:
    return {"id": name, "root": root, "max_model_len": context, "created": 7, **more}


def asked(*urls: str, longest: int = 500, **changes: Any) -> EngineSettings:
    return agreed(EngineSettings(kind="openai", urls=urls, **changes), longest)[0]


def mark(settings: EngineSettings) -> tuple[Any, int]:
    return identity(settings, "weights", "tokenizer"), settings.max_model_len


def test_a_fleet_that_moves_or_starts_again_stays_the_same() -> None:
    with MisbehavingServer(models=(model(),)) as one:
        before = mark(asked(one.url))
    with MisbehavingServer(models=(model(root="/other/place/toy-1b", created=8),)) as other:
        assert mark(asked(other.url)) == before
        with MisbehavingServer(models=(model(created=9, context=8192),)) as more:
            assert mark(asked(other.url, more.url)) == before, "a context beyond the one that is used changes nothing"
    for changed in (model(root="/a/models/toy-2b"), model("toy2"), model(context=1024)):
        with MisbehavingServer(models=(changed,)) as one:
            assert mark(asked(one.url)) != before, "another model passes for the same one"
    assert identity(asked_settings("x"), "other weights", "tokenizer") == identity(asked_settings("y"), "", "tokenizer")
    assert identity(asked_settings("x"), "", "other") != identity(asked_settings("x"), "", "tokenizer")


def asked_settings(url: str) -> EngineSettings:
    return EngineSettings(kind="openai", urls=(f"http://{url}/v1",), served_model="toy", served_root="toy-1b")


def test_the_only_model_is_taken_and_one_of_several_has_to_be_named() -> None:
    with MisbehavingServer(models=(model("a"), model("b"))) as server:
        with pytest.raises(EngineError, match="serves a, b; name the one to use by --engine-model"):
            asked(server.url)
        assert asked(server.url, served_model="b").served_model == "b"
        with pytest.raises(EngineError, match="does not serve 'c'; it serves a, b"):
            asked(server.url, served_model="c")
    with MisbehavingServer(models=()) as server, pytest.raises(EngineError, match="serves nothing"):
        asked(server.url)


def test_servers_have_to_agree_and_one_that_is_away_is_told() -> None:
    away = f"http://127.0.0.1:{free_port()}/v1"
    with MisbehavingServer(models=(model(),)) as one, MisbehavingServer(models=(model(root="/x/other"),)) as other:
        with pytest.raises(EngineError, match=r"serves toy \(other\) and .* serves toy \(toy-1b\); a fleet has to"):
            asked(one.url, other.url)
        settings, told = agreed(EngineSettings(kind="openai", urls=(away, one.url)), 500)
        assert settings.served_model == "toy" and len(told) == 1 and away in told[0]
        assert settings.unmet == (away,), "it would be trusted unasked once it is up"
        assert mark(settings) == mark(asked(one.url)), "who is away is no part of what is made"
    with pytest.raises(EngineError, match="cannot be reached within 10 s"):
        asked(away)


def test_a_context_that_is_too_short_and_one_that_nobody_tells() -> None:
    with MisbehavingServer(models=(model(context=400),)) as server:
        with pytest.raises(EngineError, match="takes 400 tokens, prompt and answer together, and up to 500 are wanted"):
            asked(server.url)
        assert asked(server.url, longest=400).max_model_len == 400
    with MisbehavingServer(models=({"id": "gpt", "owned_by": "somebody"},)) as server:
        assert asked(server.url, max_model_len=3000).max_model_len == 3000


def test_a_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(served, "ASK_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        began = time.monotonic()
        with pytest.raises(EngineError, match="cannot be reached within 0 s"):
            asked(f"http://127.0.0.1:{deaf.getsockname()[1]}/v1")
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://me:hunter2@h:8000/v1", r"the URL of h:8000 holds a user name or password; take it out"),
        ("me:hunter2@h:8000/v1", "holds a user name or password"),
        ("http://h/v1?key=hunter2", "the URL of h has a query"),
        ("ftp://h/v1", "ftp://h/v1 is no base URL"),
        ("localhost:8000", "localhost:8000 is no base URL; write http://host:8000/v1"),
        ("http://h:123456/v1", "one of the URLs is none"),
        (" , ", "no URL; give --engine-url"),
    ],
)
def test_urls_that_are_none_are_refused_without_repeating_a_secret(url: str, told: str) -> None:
    with pytest.raises(EngineError, match=told) as refused:
        base_urls(url)
    assert "hunter2" not in str(refused.value)


def test_a_list_of_urls() -> None:
    assert base_urls("http://a:1/v1/, https://b/v1,http://a:1/v1") == ("http://a:1/v1", "https://b/v1")


def test_the_engine_is_never_chosen_unasked_and_needs_its_servers() -> None:
    assert choose(EngineSettings(urls=("http://h/v1",))).kind != "openai"
    with pytest.raises(EngineError, match="no URL"):
        choose(EngineSettings(kind="openai"))
    with pytest.raises(EngineError, match="were not asked yet"):
        identity(EngineSettings(kind="openai", urls=("http://h/v1",)), "", "")


@pytest.mark.parametrize(("header", "seconds"), [("0", 0), (" 12 ", 12), (None, None), ("soon", None), ("-3", None)])
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after(header) == seconds


def test_retry_after_as_a_date(tmp_path: Path) -> None:
    from email.utils import formatdate

    assert 3 < (retry_after(formatdate(time.time() + 5, usegmt=True)) or 0) <= 5
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
