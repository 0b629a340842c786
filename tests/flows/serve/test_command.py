"""How `winnow serve` starts, is refused, and ends with everything that it started."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient

from flows.serve.deployments import read, register
from tests.conftest import free_port
from tests.flows.serve.serving import ROOT, WINNOW, Serving, alive, until
from tests.sockets import listening

pytestmark = pytest.mark.timeout(300)

NAP = """
deployments:
  - {name: on-gpu, entrypoint: tests.flows.serve.naps.nap, description: A nap., work_pool: {name: winnow-gpu}}
"""
OFTEN = """
deployments:
  - name: often
    entrypoint: tests.flows.serve.naps.nap
    description: A nap.
    parameters: {folder: FOLDER}
    work_pool: {name: winnow-cpu}
    schedules: [{slug: often, interval: 15}]
"""


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with Prefect's database, made once: its first migration takes ten seconds."""
    folder = tmp_path_factory.mktemp("migrated")
    first = Serving(folder)
    try:
        first.ready()
    finally:
        first.close()
    return first.home


@pytest.fixture
def serve(migrated: Path, tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    started: list[Serving] = []
    shutil.copytree(migrated, tmp_path / "home")

    def one(**more: Any) -> Serving:
        started.append(Serving(tmp_path, **more))
        return started[-1].ready()

    yield one
    for serving in started:
        serving.close()


def refused(**environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    words = [WINNOW, "serve", "--port", environment.pop("port", str(free_port()))]
    environment = {**inherited, **environment}
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert ended.returncode == 2 and ended.stdout == "", ended.stderr
    assert [line for line in ended.stderr.splitlines() if "starting;" not in line] == ended.stderr.splitlines()[-1:]
    return ended.stderr


def put(serving: Serving, folder: Path, text: str) -> None:
    file = folder / "prefect.yaml"
    file.write_text(text.replace("FOLDER", str(folder)))
    with SyncPrefectClient(f"{serving.url}/api") as client:
        assert register(client, read(file)).trouble == []


def napping(serving: Serving, folder: Path, **parameters: Any) -> tuple[str, int]:
    """Id and process of a run in the GPU pool that is under way."""
    put(serving, folder, NAP)
    run = serving.start("nap/on-gpu", {"folder": str(folder), **parameters})
    until((folder / f"began-{run}").exists, 90)
    [engine] = serving.engines("winnow-gpu")
    return run, engine


def test_a_server_that_is_named_already_is_not_doubled() -> None:
    told = refused(PREFECT_API_URL="http://prefect.example:4200/api")
    assert "PREFECT_API_URL names http://prefect.example:4200/api" in told and "prefect deploy" in told


def test_a_taken_port_for_reports_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        told = refused(port=str(port - 1), PREFECT_HOME=str(tmp_path))
    assert f"{port} (reports): address already in use" in told and "--port" in told


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    assert "set PREFECT_HOME" in refused(PREFECT_HOME=str(tmp_path / "home"))


def test_a_database_that_prefect_cannot_use_is_refused(tmp_path: Path) -> None:
    """Damaged, or of a newer Prefect."""
    (tmp_path / "prefect.db").write_bytes(b"no database" * 1000)
    told = refused(PREFECT_HOME=str(tmp_path)).splitlines()[-1]
    assert f"move {tmp_path / 'prefect.db'} away, or set PREFECT_HOME" in told and "PREFECT_API_URL" not in told


def test_ctrl_c_ends_every_process(serve: Callable[..., Serving], tmp_path: Path) -> None:
    serving = serve()
    children = serving.children()
    assert len(children) >= 3  # the server and two workers
    sockets = listening([serving.process.pid, *children])
    assert {one.address for one in sockets} == {"127.0.0.1"}, sockets
    assert {one.port for one in sockets} >= {serving.port, serving.port + 1}
    os.killpg(serving.process.pid, signal.SIGINT)  # as a terminal does
    assert serving.process.wait(60) == 0
    until(lambda: not any(alive(pid) for pid in children), 10)
    assert "Traceback" not in serving.text() and "runs drain first" in serving.text().splitlines()[-1]
    with socket.create_server(("127.0.0.1", serving.port)):
        pass  # the port is free again


@pytest.mark.slow
def test_sigterm_drains_what_runs_and_says_so(serve: Callable[..., Serving], tmp_path: Path) -> None:
    serving = serve()
    run, engine = napping(serving, tmp_path, seconds=60, drain_seconds=4)
    serving.process.terminate()
    assert serving.process.wait(60) == 0
    assert (tmp_path / f"ended-{run}").exists() and not alive(engine)


@pytest.mark.slow
def test_a_run_that_is_too_young_to_drain_has_not_crashed(serve: Callable[..., Serving], tmp_path: Path) -> None:
    serving = serve()
    put(serving, tmp_path, NAP)
    run = serving.start("nap/on-gpu", {"folder": str(tmp_path), "seconds": 60})
    until(lambda: serving.engines("winnow-gpu"), 90)  # a process, which is still importing
    serving.process.terminate()
    assert serving.process.wait(60) == 0
    assert not (tmp_path / f"began-{run}").exists()
    state = serve(port=serving.port).state(run)
    assert (state["type"], state["message"]) == (
        "CANCELLED",
        "stopped with its worker before it began; start it again",
    )


@pytest.mark.slow
def test_the_second_signal_ends_at_once(serve: Callable[..., Serving], tmp_path: Path) -> None:
    serving = serve()
    run, engine = napping(serving, tmp_path, seconds=60, drain_seconds=100)
    children = serving.children()
    serving.process.send_signal(signal.SIGINT)
    until(lambda: "runs drain first, what they have done" in serving.text(), 10)
    serving.process.send_signal(signal.SIGINT)
    serving.process.wait(30)
    until(lambda: not any(alive(pid) for pid in [*children, engine]), 10)
    assert not (tmp_path / f"ended-{run}").exists()


@pytest.mark.slow
def test_nothing_outlives_a_killed_serve_and_the_next_one_goes_on(
    serve: Callable[..., Serving], tmp_path: Path
) -> None:
    serving = serve()
    run, engine = napping(serving, tmp_path, seconds=60, drain_seconds=3)
    children = serving.children()
    path = f"/deployments/{serving.deployment('curate_text/nightly')['id']}"
    mine = {"parameters": {"input": "s3://lake/web", "output": "s3://lake/corpus"}}
    assert serving.api.patch(path, json={"parameters": mine}).is_success
    put(serving, tmp_path, OFTEN)
    often = {"id": {"any_": [serving.deployment("nap/often")["id"]]}}
    until(lambda: len(serving.runs(deployments=often)) >= 3, 60)
    serving.process.kill()
    serving.process.wait(10)
    until(lambda: (tmp_path / f"ended-{run}").exists(), 30)  # its worker heard of it, and it drained
    until(lambda: not any(alive(pid) for pid in [*children, engine]), 150)  # they look for the server for a while

    again = serve(port=serving.port)
    assert again.deployment("curate_text/nightly")["parameters"] == mine
    assert again.ended(run, 5)["type"] == "CRASHED"  # what Prefect was never told: it must not hold the pool's place
    assert "did not outlive the last winnow serve" in again.text()
    missed = re.search(r"(\d+) scheduled runs were missed and are left out; the last one runs now", again.text())
    assert missed and int(missed[1]) >= 1
    dropped = [
        one for one in again.runs(deployments=often) if "missed while winnow serve" in (one["state"]["message"] or "")
    ]
    assert len(dropped) == int(missed[1])
    second = again.start("nap/on-gpu", {"folder": str(tmp_path)})
    assert again.ended(second)["type"] == "COMPLETED"


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_rest_and_says_so(serve: Callable[..., Serving]) -> None:
    serving = serve()
    children = serving.children()
    os.kill(serving.worker("winnow-gpu"), signal.SIGKILL)
    assert serving.process.wait(60) == 1
    assert "the worker of winnow-gpu ended by itself (code -9)" in serving.text()
    until(lambda: not any(alive(pid) for pid in children), 10)


@pytest.mark.slow
def test_prefects_own_deploy_takes_the_shipped_file(serve: Callable[..., Serving], tmp_path: Path) -> None:
    """For a server of one's own; from another folder, so that it cannot have noted where it was called."""
    serving = serve()
    words = [str(Path(sys.executable).parent / "prefect"), "--no-prompt", "deploy", "--all", "--prefect-file"]
    ended = subprocess.run(
        [*words, str(ROOT / "deployments" / "prefect.yaml")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PREFECT_API_URL": f"{serving.url}/api"},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    one = serving.deployment("curate_text/ad-hoc")
    assert one["entrypoint"] == "flows.curate_text.curate_text" and one["enforce_parameter_schema"]
    assert str(tmp_path) not in str(one) and str(ROOT) not in str(one)
