"""A node whose machine is taken away, as a pod or spot machine is: SIGTERM to `ray start --block` of a real raylet."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from operators.language.engine import EngineSettings, Sampling
from operators.route import Route
from tasks import stages
from tasks.executor import Policy
from tasks.ray_cluster import cluster
from tasks.rewrite import Choice
from tasks.source import SourceColumns, open_source
from tasks.stage import Execution, Executor, Stage, run_stage
from tasks.store import Store
from tasks.summary import Status
from tests.nodes import TOKEN, Nodes, node_ids, until
from tests.stuck import WithStuckEngine
from tests.toys import Length, Reverse

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]
NOTICE_SECONDS = 60.0


@pytest.fixture
def joined(ray_head: Nodes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setenv("RAY_ADDRESS", ray_head.address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    ray_head.add("c", RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=str(NOTICE_SECONDS))
    try:
        with cluster("auto"):
            until(lambda: {"a", "c"} <= node_ids().keys(), "the driver sees both nodes")
            yield ray_head
    finally:
        if "c" in ray_head.running:
            ray_head.kill("c")


def rewriting(web: Path, root: str, folder: Path, calls: Path) -> Stage:
    """Sixty requests in three shards, a fifth of a second each, to an engine that is a named fake."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    store, local = Store(root), Execution(executor=Executor.LOCAL)
    source = open_source(str(web), SourceColumns())
    length = run_stage(stages.annotate("length", Length(), [source], store), store, local)
    source = source.with_contents(length.contents())
    routes = run_stage(
        stages.annotate("route", Route(routes=(("keep", "length > 0"),)), [length.dataset], store), store, local
    )
    settings = EngineSettings(model=str(folder / "model"), kind="transformers")
    choice = Choice("route", ("keep",), 1.0, 0)
    stage = stages.rewrite("reverse", Reverse(), settings, Sampling(), choice, [source, routes.dataset], store)
    never = folder / "never"
    never.touch()
    worker = WithStuckEngine.instead_of(stage.worker, calls, never, answers=0, delay=0.2)
    return replace(stage, worker=worker, resources=stage.resources.model_copy(update={"cpus": 1.0}))


def test_a_node_that_gets_sigterm_is_left_in_time_and_nothing_is_generated_twice(
    joined: Nodes, web: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls, root = tmp_path / "calls", str(tmp_path / "out")
    stage = rewriting(web, root, tmp_path, calls)

    def take_away() -> None:
        until(lambda: calls.exists() and len(calls.read_text().splitlines()) >= 10, "both engines are at work")
        joined.running["c"].terminate()

    taking = threading.Thread(target=take_away, daemon=True)
    taking.start()
    policy = Policy(retries=0, setup_seconds=90.0)
    result = run_stage(stage, Store(root), Execution(executor=Executor.RAY, workers=2, policy=policy))
    taking.join(90)
    assert result.summary.status is Status.DONE and result.summary.accounts.closed(), result.summary.failures
    assert "its machine is to go away" in caplog.text and "is lost" not in caplog.text
    asked = Counter(calls.read_text().splitlines())
    assert len(asked) == 60 and max(asked.values()) == 1, "an answer was paid for twice"
    joined.running["c"].wait(NOTICE_SECONDS / 2)  # nothing holds the node any more, and Ray lets it go


def test_where_the_driver_s_node_goes_the_run_drains_and_the_next_one_generates_the_rest(
    joined: Nodes, web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver of this test is on the head's node; the pool is told that it is on c, which really goes."""
    from tasks import ray_executor
    from tasks.stage import Bounds

    calls, root, bounds = tmp_path / "calls", str(tmp_path / "out"), Bounds()
    stage, driver = rewriting(web, root, tmp_path, calls), node_ids()["c"]
    real = ray_executor.RayPool.__init__

    def on_c(self: ray_executor.RayPool, *arguments: object) -> None:
        real(self, *arguments)  # type: ignore[arg-type]
        self._here = driver

    monkeypatch.setattr(ray_executor.RayPool, "__init__", on_c)

    def take_away() -> None:
        until(lambda: calls.exists() and len(calls.read_text().splitlines()) >= 10, "the engines are at work")
        joined.running["c"].terminate()

    threading.Thread(target=take_away, daemon=True).start()
    policy = Policy(retries=0, setup_seconds=90.0)
    execution = Execution(executor=Executor.RAY, workers=2, policy=policy)
    first = run_stage(stage, Store(root), execution, bounds)
    assert first.summary.status is Status.BOUNDED and not first.summary.failures
    assert bounds.reason == "the machine that drives this run was announced to go away"
    before = Counter(calls.read_text().splitlines())
    assert 10 <= len(before) < 60
    second = run_stage(stage, Store(root), replace(execution, workers=1))
    assert second.summary.status is Status.DONE and second.summary.accounts.closed()
    asked = Counter(calls.read_text().splitlines())
    assert len(asked) == 60 and max(asked.values()) == 1, "an answer was paid for twice"
