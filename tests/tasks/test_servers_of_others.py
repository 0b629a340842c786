"""A rewrite stage on servers of others that misbehave: its accounts close, no answer is paid for twice, and it ends."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from operators.language.engine import EngineSettings, Sampling
from operators.language.openai_engine import OpenAIEngine
from operators.route import Route
from tasks import rewrite, stages
from tasks.executor import Policy
from tasks.rewrite import Choice
from tasks.source import SourceColumns, open_source
from tasks.stage import Execution, Executor, Stage, StageResult, run_stage
from tasks.store import Store
from tasks.summary import Status
from tests.misbehaving_server import ENDLESS, MisbehavingServer, tokenizer_of_words
from tests.remote_engine import QUICK, quick_and_without_key
from tests.toys import Length, Reverse

LOCAL = Execution(executor=Executor.LOCAL, policy=Policy(retries=0))
REQUESTS = 60


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_and_without_key(monkeypatch)
    limits = replace(QUICK, attempts=3)
    monkeypatch.setattr(rewrite, "load_engine", lambda settings, folder: OpenAIEngine(settings, folder, limits))


def rewriting(web: Path, folder: Path, url: str) -> Stage:
    """Sixty requests in three shards, ten at once."""
    model = folder / "model"
    if not model.exists():
        model.mkdir()
        tokenizer_of_words(model)
    store = Store(str(folder / "out"))
    source = open_source(str(web), SourceColumns())
    length = run_stage(stages.annotate("length", Length(), [source], store), store, LOCAL)
    source = source.with_contents(length.contents())
    route = Route(routes=(("keep", "length > 0"),))
    routes = run_stage(stages.annotate("route", route, [length.dataset], store), store, LOCAL)
    settings = EngineSettings(
        kind="openai",
        model=str(model),
        urls=(url,),
        served_model="toy",
        max_in_flight=10,
        request_seconds=1.0,
        patience_seconds=3.0,
    )
    choice = Choice("route", ("keep",), 1.0, 0)
    return stages.rewrite("reverse", Reverse(), settings, Sampling(), choice, [source, routes.dataset], store)


def run(stage: Stage, folder: Path) -> StageResult:
    return run_stage(stage, Store(str(folder / "out")), LOCAL)


@pytest.mark.parametrize(
    "fault", ["429", "429_after", "500", "503", "cut_body", "truncated_json", "drop", "cut_headers", *ENDLESS]
)
def test_a_fault_that_passes_costs_no_row_and_no_second_answer(fault: str, web: Path, tmp_path: Path) -> None:
    """Every fifth request meets it, the first time it is made."""
    began = time.monotonic()
    met: list[str] = []

    def schedule(prompt: str, before: int) -> str:
        if before or len(prompt) % 5:
            return "ok"
        met.append(prompt)
        return fault

    with MisbehavingServer(schedule) as server:
        result = run(rewriting(web, tmp_path, server.url), tmp_path)
        summary = result.summary
        assert met, "the fault was never met"
        assert summary.status is Status.DONE and summary.accounts.closed(), summary.failures
        assert summary.accounts.outcomes == {"rewritten": 30} and summary.accounts.rows_out == REQUESTS
        assert len(server.answered) == REQUESTS and max(server.answered.values()) == 1
    assert time.monotonic() - began < 40


@pytest.mark.parametrize("fault", ENDLESS)
def test_a_request_that_is_never_answered_costs_its_own_row(fault: str, web: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    with MisbehavingServer(lambda prompt, before: fault if "number 77" in prompt else "ok") as server:
        summary = run(rewriting(web, tmp_path, server.url), tmp_path).summary
        assert summary.status is Status.DONE and summary.accounts.closed(), summary.failures
        assert summary.accounts.outcomes == {"quarantined": 1, "rewritten": 29}
        [reason] = summary.accounts.reasons
        assert reason.startswith("given up after") and "\n" not in reason
        assert len(server.answered) == REQUESTS - 1 and max(server.answered.values()) == 1
    assert time.monotonic() - began < 40


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["429", "500", "cut_body", *ENDLESS])
def test_a_server_that_stays_faulty_ends_the_stage_within_its_limit_and_keeps_what_came_before(
    fault: str, web: Path, tmp_path: Path
) -> None:
    began, broken = time.monotonic(), [True]
    with MisbehavingServer(lambda prompt, before: "ok" if len(server.asked) < 25 or not broken[0] else fault) as server:
        summary = run(rewriting(web, tmp_path, server.url), tmp_path).summary
        assert time.monotonic() - began < 60
        assert summary.status is Status.FAILED and 1 <= len(summary.failures) <= 3
        assert all(one.error.startswith("the language engine failed: engine openai") for one in summary.failures)
        assert not any("\n" in one.error for one in summary.failures)
        broken[0] = False
        mended = run(rewriting(web, tmp_path, server.url), tmp_path).summary
        assert mended.status is Status.DONE and mended.accounts.rows_out == REQUESTS
        assert len(server.answered) == REQUESTS and max(server.answered.values()) == 1, "an answer was paid for twice"
