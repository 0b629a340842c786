"""Real Ray nodes on loopback for tests: each `ray start` in a folder and a session of its own, ended by process id."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from operators.base import execution
from operators.language.keys import KEY_VARIABLES
from tests.toys import Length

RAY = str(Path(sys.executable).parent / "ray")
START_SECONDS = 90.0
TOKEN = "a-token-of-the-tests-and-nothing-else-0123456789"


def until(reached: Callable[[], object], what: str, seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)


def free_port(first: int = 0) -> int:
    """Outside 10002-19999, where Ray puts its workers, and of what the system gives away by itself."""
    for port in range(first or 20000 + os.getpid() % 2000 * 5, 32700):
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


class Nodes:
    """A head without CPUs, and the nodes that were added. Ray's sockets want a short path, hence a folder in /tmp."""

    def __init__(self, jobs: bool = False, **environment: str) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="wn-", ignore_cleanup_errors=True)
        hidden = ("RAY_ADDRESS", "PREFECT_API_URL", "PREFECT_PROFILE", *KEY_VARIABLES)
        inherited = {name: value for name, value in os.environ.items() if name not in hidden}
        self.environment = {
            **inherited,
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",  # of a job's `winnow`
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        self.port, self.running = free_port(), dict[str, subprocess.Popen[bytes]]()
        self.address = f"127.0.0.1:{self.port}"
        client = free_port(self.port + 1)
        words = ["--head", f"--port={self.port}", "--num-cpus=0", f"--temp-dir={self.folder.name}"]
        words += [f"--include-dashboard={str(jobs).lower()}", f"--ray-client-server-port={client}"]
        self.dashboard = ""
        if jobs:
            port = free_port(client + 1)
            words += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
            self.dashboard = f"http://127.0.0.1:{port}"
        try:
            self._start("head", words)
            if jobs:
                until(lambda: self._alive("head") and self._jobs_answer(), "the job server answers")
        except BaseException:
            self.end()
            raise

    def add(self, name: str, cpus: int = 1, **environment: str) -> None:
        """A node with a resource of its name, which has joined. One after the other: two that start together on one
        machine can block each other."""
        words = [f"--address={self.address}", f"--num-cpus={cpus}", "--resources", json.dumps({name: 1})]
        self._start(name, words, **environment)

    def kill(self, name: str) -> None:
        """At once and with all it started, as a machine that loses its power."""
        process = self.running.pop(name)
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for one in below:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        process.kill()
        process.wait(20)

    def end(self) -> None:
        for name in list(self.running):
            self.kill(name)
        self.folder.cleanup()

    def log(self, name: str) -> str:
        return Path(self.folder.name, f"{name}.log").read_text()

    def _alive(self, name: str) -> bool:
        assert self.running[name].poll() is None, self.log(name)[-2000:]
        return True

    def _jobs_answer(self) -> bool:
        asked = urllib.request.Request(f"{self.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _start(self, name: str, words: list[str], **environment: str) -> None:
        command = [RAY, "start", "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats", *words]
        command += ["--object-store-memory=100000000"]
        with Path(self.folder.name, f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env={**self.environment, **environment}
            )
        until(lambda: self._alive(name) and "Ray runtime started" in self.log(name), f"{name} has started")


class Traced(Length):
    """Leaves a file ``<node id>-<random>`` in ``trace`` for each batch, then takes its time."""

    trace: str = execution("")

    def __call__(self, table: pa.Table) -> pa.Table:
        import ray

        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "local"
        Path(self.trace, f"{node}-{os.urandom(4).hex()}").touch()
        return super().__call__(table)


def traced_on(trace: Path) -> set[str]:
    return {one.name.partition("-")[0] for one in trace.iterdir()}


def node_ids() -> dict[str, str]:
    """Name of each node of the cluster that this process has joined, to its id; of those that are alive."""
    import ray

    alive: list[dict[str, Any]] = [one for one in ray.nodes() if one["Alive"]]
    return {name: one["NodeID"] for one in alive for name in one["Resources"] if name in ("a", "b", "c")}
