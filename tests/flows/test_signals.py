"""How a run from the command line takes signals, and the loss of Prefect: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.toys import documents

pytestmark = pytest.mark.timeout(120)

WINNOW = str(Path(sys.executable).parent / "winnow")
SHARDS = 60
UNDER_WAY = 5


class Command:
    """``winnow curate-text`` in a session of its own, as a terminal would start it."""

    def __init__(self, source: Path, output: Path, *more: str, **environment: str) -> None:
        self.output = output
        self.said = output.parent / f"{output.name}.err"
        words = [WINNOW, "curate-text", "--input", str(source), "--output", str(output), "--no-rephrase", "--json"]
        words += ["--workers", "1", "--max-quarantine", "1", *more]
        hidden = ("PREFECT_API_URL", "PREFECT_PROFILE")
        inherited = {name: value for name, value in os.environ.items() if name not in hidden}
        with self.said.open("wb") as err, self.said.with_suffix(".out").open("wb") as out:
            self.process = subprocess.Popen(
                words,
                stdout=out,
                stderr=err,
                start_new_session=True,
                env={**inherited, "OMP_NUM_THREADS": "1", **environment},
            )

    def shards(self) -> int:
        return len(list(self.output.glob("language/**/*.parquet")))

    def until_under_way(self) -> None:
        until(lambda: self.shards() >= UNDER_WAY or self.process.poll() is not None, 60)
        assert self.process.poll() is None, f"ended too soon: {self.error()}"
        assert self.shards() < SHARDS

    def server(self) -> int:
        """Process id of the Prefect server that the command started."""
        listed = [words for words in command_lines().items() if words[1][-1:] == [str(self.process.pid)]]
        assert len(listed) == 1, listed
        return listed[0][0]

    def ended(self, seconds: float) -> dict[str, Any]:
        """The summary that it printed; by then its server has to be gone."""
        server = [pid for pid, words in command_lines().items() if words[-1:] == [str(self.process.pid)]]
        self.process.wait(seconds)
        assert not any(alive(pid) for pid in server)
        return dict(json.loads(self.said.with_suffix(".out").read_text()))

    def error(self) -> str:
        return self.said.read_text()


def command_lines() -> dict[int, list[str]]:
    """Prefect servers of winnow that run now: process id to its words."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
            except OSError:
                continue
            if any(word.endswith("prefect_server.py") for word in words):
                found[int(entry.name)] = words
    return found


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"  # an orphan may wait for whoever reaps here


def until(reached: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"not reached in {seconds} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for shard in range(SHARDS):
        pq.write_table(documents(2, shard * 2), folder / f"part-{shard:03}.parquet")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's database, made once for all: its first migration takes ten seconds."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture
def start(source: Path, home: Path, tmp_path: Path) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def one(*more: str, **environment: str) -> Command:
        started.append(
            Command(source, tmp_path / "out", *(more or ("--executor", "local")), PREFECT_HOME=str(home), **environment)
        )
        return started[-1]

    yield one
    for command in started:
        if command.process.poll() is None:
            os.killpg(command.process.pid, signal.SIGKILL)
            command.process.wait(10)


def language(summary: dict[str, Any]) -> dict[str, Any]:
    return dict(next(one for one in summary["stages"] if one["name"] == "language"))


def drained_by_sigterm(start: Callable[..., Command]) -> int:
    """How many shards its first stage made."""
    first = start()
    first.until_under_way()
    first.process.send_signal(signal.SIGTERM)
    summary = first.ended(30)
    assert first.process.returncode == 1
    assert summary["status"] == "bounded" and "stopped by SIGTERM" in summary["messages"][-1]
    assert "draining" in first.error() and "Traceback" not in first.error()
    made = language(summary)["shards_made"]
    assert UNDER_WAY <= made < SHARDS
    shown = subprocess.run(
        [WINNOW, "status", str(first.output)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "bounded" in shown.stdout
    return int(made)


def test_sigterm_drains(start: Callable[..., Command]) -> None:
    drained_by_sigterm(start)


@pytest.mark.slow
def test_the_run_after_a_drained_one_makes_only_what_is_left(start: Callable[..., Command]) -> None:
    made = drained_by_sigterm(start)
    second = start()
    summary = second.ended(100)
    assert second.process.returncode == 0 and summary["status"] == "done", second.error()
    assert language(summary)["shards_made"] == SHARDS - made
    assert language(summary)["shards_before"] == made


def test_ctrl_c_in_a_terminal_drains(start: Callable[..., Command]) -> None:
    command = start()
    command.until_under_way()
    os.killpg(command.process.pid, signal.SIGINT)
    summary = command.ended(30)
    assert command.process.returncode == 1
    assert summary["status"] == "bounded" and "stopped by SIGINT" in summary["messages"][-1]
    assert "Traceback" not in command.error() and "unreachable" not in command.error()


def test_the_second_signal_ends_the_run_at_once(start: Callable[..., Command]) -> None:
    command = start()
    command.until_under_way()
    server = command.server()
    command.process.send_signal(signal.SIGTERM)
    until(lambda: "draining" in command.error(), 10)
    command.process.send_signal(signal.SIGTERM)
    command.process.wait(30)
    assert command.process.returncode == 1
    assert "Traceback" not in command.error()
    assert not alive(server)


def test_a_signal_while_the_run_starts_ends_it(start: Callable[..., Command]) -> None:
    command = start()
    until(lambda: any(words[-1] == str(command.process.pid) for words in command_lines().values()), 30)
    server = command.server()
    command.process.send_signal(signal.SIGINT)
    command.process.wait(60)
    assert command.process.returncode == 1
    assert "Traceback" not in command.error()
    assert not alive(server)


@pytest.mark.slow
def test_a_prefect_server_that_dies_does_not_stop_the_run(start: Callable[..., Command]) -> None:
    command = start()
    command.until_under_way()
    os.kill(command.server(), signal.SIGKILL)
    summary = command.ended(110)
    assert command.process.returncode == 0, command.error()
    assert summary["status"] == "done" and summary["report"]
    assert "Prefect was unreachable" in command.error() and "Traceback" not in command.error()


def test_no_server_outlives_a_killed_run(start: Callable[..., Command]) -> None:
    command = start()
    until(lambda: any(words[-1] == str(command.process.pid) for words in command_lines().values()), 30)
    server = command.server()
    time.sleep(1)  # it asks the kernel for this as its first act
    command.process.kill()
    command.process.wait(10)
    until(lambda: not alive(server), 10)


def test_a_prefect_that_does_not_answer_is_refused_in_one_line(start: Callable[..., Command]) -> None:
    command = start(PREFECT_API_URL="http://127.0.0.1:9/api")
    command.process.wait(60)
    assert command.process.returncode == 2
    assert len(command.error().strip().splitlines()) == 1, command.error()
    assert not command.shards()


@pytest.mark.slow
def test_ctrl_c_drains_on_ray(start: Callable[..., Command]) -> None:
    command = start("--executor", "ray")
    command.until_under_way()
    os.killpg(command.process.pid, signal.SIGINT)
    summary = command.ended(40)
    assert command.process.returncode == 1
    assert summary["status"] == "bounded" and not language(summary)["failures"]
    assert "Traceback" not in command.error()


@pytest.mark.slow
def test_sigterm_drains_on_ray(start: Callable[..., Command]) -> None:
    command = start("--executor", "ray")
    command.until_under_way()
    command.process.send_signal(signal.SIGTERM)
    summary = command.ended(40)
    assert command.process.returncode == 1
    assert summary["status"] == "bounded" and not language(summary)["failures"]
    assert "Traceback" not in command.error()
