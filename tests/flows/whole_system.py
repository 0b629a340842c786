"""The whole system in processes that can be killed one by one: command, Ray's, Prefect's server, S3 (SeaweedFS)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tasks.store import Store, StoreError
from tests.conftest import free_port

WINNOW = str(Path(sys.executable).parent / "winnow")
DRIVER, WORKER, RAY, PREFECT, S3 = "driver", "worker", "all of Ray", "Prefect server", "S3 server"
VICTIMS = (DRIVER, WORKER, RAY, PREFECT, S3)
END_SECONDS = 240.0
DOWN_SECONDS = 1.0
"""How long a server stays away before it is started again."""


class Server:
    """A process that listens at ``url`` and can be killed and started again as it was."""

    def __init__(
        self,
        words: list[str],
        url: str,
        folder: Path,
        process: subprocess.Popen[bytes] | None = None,
        **environment: str,
    ) -> None:
        self.words, self.url, self.folder = words, url, folder
        self.environment = {**os.environ, **environment}
        self.process = process

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.words, stdout=log, stderr=log, cwd=self.folder, env=self.environment, start_new_session=True
            )

    def ready(self) -> None:
        until(self._answers, 90, f"{self.url} answers")

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, (self.folder / "server.log").read_text()[
            -2000:
        ]
        try:
            urllib.request.urlopen(self.url, timeout=2)
        except urllib.error.HTTPError:
            return True  # it answers, and refuses as it should what carries no key
        except OSError:
            return False
        return True

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)

    def restart(self) -> None:
        self.kill()
        time.sleep(DOWN_SECONDS)
        self.start()


def prefect_server(folder: Path) -> Server:
    """Prefect's API on a port of its own, with a database that outlives it."""
    port = free_port()
    words = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    words += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning", "--timeout-graceful-shutdown", "2"]
    environment = {"PREFECT_HOME": str(folder), "PREFECT_UI_ENABLED": "0", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    return Server(words, f"http://127.0.0.1:{port}/api/health", folder, **environment)


class Command:
    """``winnow curate-text`` in a session of its own, which is ended with all that it started."""

    def __init__(self, folder: Path, number: int, flags: list[str], environment: dict[str, str]) -> None:
        self.said, self.out = folder / f"{number}.err", folder / f"{number}.out"
        hidden = ("PREFECT_API_URL", "PREFECT_PROFILE", "RAY_ADDRESS")
        inherited = {name: value for name, value in os.environ.items() if name not in hidden}
        self._seen: dict[int, psutil.Process] = {}
        with self.said.open("wb") as err, self.out.open("wb") as out:
            self.process = psutil.Popen(
                [WINNOW, "curate-text", *flags, "--json"],
                stdout=out,
                stderr=err,
                start_new_session=True,
                env={**inherited, "OMP_NUM_THREADS": "1", **environment},
            )

    def running(self) -> bool:
        return self.process.poll() is None

    def error(self) -> str:
        return self.said.read_text()

    def below(self) -> list[psutil.Process]:
        """What it has started and what those have; remembered, since orphans have other parents."""
        try:
            for one in self.process.children(recursive=True):
                self._seen.setdefault(one.pid, one)
        except psutil.NoSuchProcess:
            pass
        return [one for one in self._seen.values() if _alive(one)]

    def workers(self) -> list[psutil.Process]:
        """Ray's processes that hold an actor of ours; its own agents are named ray::SomethingElse."""
        return [one for one in self.below() if _title(one).startswith("ray::Actor")]

    def ray(self) -> list[psutil.Process]:
        marks = ("ray::", "raylet", "gcs_server", "ray/dashboard", "log_monitor", "ray/_private")
        return [one for one in self.below() if any(mark in _title(one) for mark in marks)]

    def end(self) -> None:
        below = self.below()
        for one in [self.process, *below]:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait(20)


def kill_all(processes: list[psutil.Process]) -> None:
    for one in processes:
        try:
            one.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def until(reached: Callable[[], Any], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)


def stands(store: Store, place: str) -> int:
    """Objects below ``place``; none while the store is away."""
    try:
        return len(store.entries(place))
    except StoreError:
        return 0
