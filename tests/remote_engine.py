"""For tests of engine openai: one with short limits, requests, and their answers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from operators.language import fleet
from operators.language.engine import Completion, Engine, EngineSettings, Request, Sampling
from operators.language.keys import KEY_VARIABLES
from operators.language.openai_client import Limits
from operators.language.openai_engine import OpenAIEngine
from tasks.workers import Beat
from tests.misbehaving_server import MisbehavingServer, answer_to

QUICK = Limits(connect=2.0, first_break=0.01, longest_break=0.05, attempts=40, drain=5.0)


def quick_and_without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "FIRST_BREAK", 0.05)
    for name in KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@contextmanager
def engine(
    words: Path, *servers: MisbehavingServer | str, limits: Limits = QUICK, **changes: Any
) -> Iterator[OpenAIEngine]:
    urls = tuple(one if isinstance(one, str) else one.url for one in servers)
    given = {"request_seconds": 1.0, "patience_seconds": 10.0, "max_in_flight": 8, **changes}
    made = OpenAIEngine(EngineSettings(kind="openai", urls=urls, served_model="toy", **given), words, limits)
    try:
        yield made
    finally:
        made.close()


def prompts(count: int) -> list[Request]:
    return [Request(part, (("user", f"request {part} of {'many ' * (part % 5)}words"),)) for part in range(count)]


def complete(engine: Engine, requests: list[Request], sampling: Sampling = Sampling()) -> dict[int, Completion]:
    answers = list(engine.generate(requests, sampling))
    assert sorted(request.part for request, _ in answers) == [one.part for one in requests], "not one answer a request"
    return {request.part: completion for request, completion in answers}


def text_of(request: Request) -> str:
    return answer_to(request.messages[-1][1])


class KeyReader:
    """A worker that says what it sees in a variable of its environment, as a hash."""

    concurrency = 1

    def __init__(self, name: str = KEY_VARIABLES[0]) -> None:
        self.name = name

    def setup(self) -> None:
        self.seen = hashlib.sha256(os.environ.get(self.name, "").encode()).hexdigest()

    def process(self, unit: int) -> str:
        return self.seen

    def beat(self) -> Beat:
        return Beat()

    def drain(self) -> None:
        """Nothing to stop."""

    def close(self) -> None:
        """Nothing to free."""
