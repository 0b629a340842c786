"""`winnow serve` as a person starts it: a process of its own on a free port, with a home of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import free_port

ROOT = Path(__file__).resolve().parents[3]
WINNOW = str(Path(sys.executable).parent / "winnow")
READY = "Ctrl-C ends all of this"
HIDDEN = ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_HOME", "WINNOW_REPORT_URL")
BUSY = 503
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Serving:
    """The command, what it said, and its API."""

    def __init__(self, folder: Path, port: int | None = None, **environment: str) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.home = folder / "home"
        self.said = folder / f"serve-{self.port}.txt"
        inherited = {name: value for name, value in os.environ.items() if name not in HIDDEN}
        with self.said.open("wb") as out:
            self.process = subprocess.Popen(
                [WINNOW, "serve", "--port", str(self.port)],
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=folder,
                env={
                    **inherited,
                    "PREFECT_HOME": str(self.home),
                    "PYTHONPATH": str(ROOT),  # for the flows of these tests
                    "OMP_NUM_THREADS": "1",
                    **environment,
                },
            )
        self.api = httpx.Client(base_url=f"{self.url}/api", timeout=60, trust_env=False)

    def ready(self) -> Serving:
        until(lambda: READY in self.text() or self.process.poll() is not None, 180)
        assert self.process.poll() is None, self.text()
        return self

    def text(self) -> str:
        return self.said.read_text()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        self.api.close()

    def get(self, path: str) -> Any:
        """Again where the server is busy or says nothing: on two loaded cores a question may get none."""
        deadline = time.monotonic() + 120
        while True:
            try:
                answer = self.api.get(path, timeout=20)
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
            else:
                if answer.status_code != BUSY or time.monotonic() > deadline:
                    return answer.raise_for_status().json()
            time.sleep(0.5)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Again, as Prefect's client and UI do, where SQLite's lock was not had in time: 503, and nothing was done."""
        deadline = time.monotonic() + 60
        while (answer := self.api.post(path, json=body)).status_code == BUSY and time.monotonic() < deadline:
            time.sleep(0.5)
        assert answer.is_success, answer.text
        return answer.json()

    def deployment(self, name: str) -> dict[str, Any]:
        return dict(self.get(f"/deployments/name/{name}"))

    def start(self, name: str, parameters: dict[str, Any]) -> str:
        """Id of a new run of the deployment."""
        path = f"/deployments/{self.deployment(name)['id']}/create_flow_run"
        return str(self.post(path, {"parameters": parameters})["id"])

    def state(self, run: str) -> dict[str, Any]:
        return dict(self.get(f"/flow_runs/{run}")["state"])

    def ended(self, run: str, seconds: float = 120) -> dict[str, Any]:
        until(lambda: self.state(run)["type"] in ENDED, seconds)
        return self.state(run)

    def cancel(self, run: str) -> None:
        body = {"state": {"type": "CANCELLING", "name": "Cancelling"}}  # what the UI's Cancel sends
        self.post(f"/flow_runs/{run}/set_state", body)

    def artifacts(self, run: str) -> dict[str, dict[str, Any]]:
        found = self.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
        return {one["key"]: one for one in found if one["key"]}

    def runs(self, **where: Any) -> list[dict[str, Any]]:
        return list(self.post("/flow_runs/filter", where))

    def worker(self, pool: str) -> int:
        return next(pid for pid in self.children() if f"flows.serve.worker\0{pool}" in command_line(pid))

    def engines(self, pool: str) -> list[int]:
        """Process ids of the runs under way."""
        return [pid for pid in descendants(self.worker(pool)) if "prefect.engine" in command_line(pid)]

    def children(self) -> list[int]:
        return descendants(self.process.pid)


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def descendants(pid: int) -> list[int]:
    """Process ids below ``pid``, in no order."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        below = parents.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"  # an orphan may wait for whoever reaps here


def until(reached: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"not reached in {seconds} s"
        time.sleep(0.1)
