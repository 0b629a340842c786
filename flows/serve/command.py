"""`winnow serve`: server, deployments and workers as children of one process, on loopback, all gone when it is."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from flows.cli import CLOSED, OPEN
from flows.placement import NO_GPU
from flows.prefect_server import NoServer, await_server, end, start_server
from flows.serve.pools import POOLS, BadDeployments, Pool
from flows.signals import SIGNALS
from flows.start import refuse, say

HOST = "127.0.0.1"
LAST_PORT = 65535
LOOK_SECONDS = 0.2
STOP_SECONDS = 10.0
ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_CLI_COLORS": "false",
    # a server on the same machine: a run starts, or is cancelled, within seconds of a click
    "PREFECT_WORKER_QUERY_SECONDS": "3",
    "PREFECT_RUNNER_POLL_FREQUENCY": "3",
    "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",
    "PREFECT_CLIENT_MAX_RETRIES": "3",  # a server that is gone is given up after seconds and not after a minute a call
    # what runs say is in the UI, with the run; the terminal shows what became of them
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}
SCREEN = """
Prefect's UI:  {url}
Reports:       {reports}  (linked from the artifacts of each run)

{deployments}

Start a run:       Deployments, its three dots, Custom run.
Start the nightly: its three dots, Edit; set input and output; switch it on.
Show the runs of `winnow curate-text` there too:
  export PREFECT_API_URL={url}/api
Ctrl-C ends all of this; runs drain first, and started again they go on.
"""


class Asked(Exception):
    """A person, or the system, asked for the end."""


def serve(port: int) -> int:
    """Serves until SIGINT or SIGTERM. Exit code 0, 1 where a part of it died, 2 where it could not start."""
    if url := os.environ.get("PREFECT_API_URL"):
        return refuse(
            f"PREFECT_API_URL names {url}, and winnow serve starts a server of its own; unset it, or put the "
            "deployments on yours with `prefect deploy` (deployments/README.md)"
        )
    home = Path(os.environ.get("PREFECT_HOME") or platformdirs.user_data_path("winnow") / "prefect").absolute()
    os.environ["PREFECT_HOME"] = str(home)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with ExitStack() as ours:
        try:
            lock = ours.enter_context(locked(home))
        except BlockingIOError:
            return refuse(
                f"{home}: another winnow serve works there, or runs of one still drain; end it, or set PREFECT_HOME "
                "to a folder for this one"
            )
        except OSError as error:
            return refuse(f"{home}: cannot be used ({error.strerror}); set PREFECT_HOME to a folder for winnow serve")
        try:
            door = ours.enter_context(socket.create_server((HOST, port)))
            socket.create_server((HOST, reports_port(port))).close()  # taken in earnest once Prefect is imported
        except OSError as error:
            return refuse(
                f"ports {port} and {reports_port(port)} (reports): {os.strerror(error.errno or 0).lower()}; end what "
                "listens there, or give another --port"
            )
        signals = ours.enter_context(Signals().raised())
        try:
            return _serve(port, door, lock, home, ours, signals)
        except Asked:
            say("ending; runs drain first, what they have done is kept (once more to end at once)")
            return CLOSED
        except (NoServer, BadDeployments) as error:
            return refuse(str(error))


def _serve(port: int, door: socket.socket, lock: int, home: Path, ours: ExitStack, signals: Signals) -> int:
    url = f"http://{HOST}:{port}"
    say(f"starting; runs, schedules and settings are kept in {home}")
    server = start_server(door, _server_environment(home, port))
    ours.callback(end, server, STOP_SECONDS)
    os.environ["PREFECT_API_URL"] = f"{url}/api"

    from flows.serve import deployments  # imports Prefect, which takes seconds; the server starts meanwhile
    from flows.serve.reports import PortTaken, report_server

    await_server(
        server,
        f"{url}/api",
        f"its database may be damaged, or of a newer Prefect: move {home / 'prefect.db'} away, or set PREFECT_HOME to "
        "another folder",
    )
    screen, trouble = deployments.put_on_server(deployments.read())
    try:
        reports = ours.enter_context(report_server(reports_port(port)))
    except PortTaken as error:  # since we looked
        raise NoServer(str(error)) from error
    workers: dict[str, subprocess.Popen[bytes]] = {}
    ours.callback(end_workers, workers, signals)
    for pool in POOLS:
        workers[f"the worker of {pool.name}"] = _start_worker(pool, lock)
    for line in trouble:
        say(line)
    print(SCREEN.format(url=url, reports=reports, deployments=screen), flush=True)
    while True:
        for name, child in {"Prefect's server": server, **workers}.items():
            if child.poll() is not None:
                say(f"{name} ended by itself (code {child.returncode}); ending the rest: start winnow serve again")
                return OPEN
        time.sleep(LOOK_SECONDS)


def reports_port(port: int) -> int:
    """Always the same one for a port, because runs of last week link to it."""
    return port + 1 if port < LAST_PORT else port - 1


def end_workers(workers: dict[str, subprocess.Popen[bytes]], signals: Signals) -> None:
    """Lets the workers drain their runs, as long as they need or until the second signal."""
    for one in workers.values():
        one.terminate()
    while any(one.poll() is None for one in workers.values()) and signals.heard < 2:
        time.sleep(LOOK_SECONDS)  # they have limits of their own
    for one in workers.values():
        if one.poll() is None:
            os.killpg(one.pid, signal.SIGKILL)  # its runs are in its group
            one.wait()


def _start_worker(pool: Pool, lock: int) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    if not pool.gpus:
        environment |= {"CUDA_VISIBLE_DEVICES": "", NO_GPU: pool.name}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "flows.serve.worker", pool.name, str(os.getpid())],
        pass_fds=[lock],  # held as long as a run of it lives, so that no other serve gives its GPU away
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        env=environment,
    )


def _server_environment(home: Path, port: int) -> dict[str, str]:
    return {
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_UI_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_UI_STATIC_DIRECTORY": str(home / "ui"),  # its files name the port, so two servers cannot share them
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # Prefect lets every page of the browser talk to the API, and the API starts runs that read and write files
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{HOST}:{port},http://localhost:{port}",
    }


@contextmanager
def locked(home: Path) -> Iterator[int]:
    """Holds the folder for this process and its workers. Raises BlockingIOError where another one holds it."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    held = os.open(home, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield held
    finally:
        os.close(held)


class Signals:
    """Counts SIGINT and SIGTERM; the first raises Asked where it finds us."""

    heard = 0

    def _handle(self, number: int, frame: Any) -> None:
        self.heard += 1
        if self.heard == 1:
            raise Asked

    @contextmanager
    def raised(self) -> Iterator[Signals]:
        before = {one: signal.signal(one, self._handle) for one in SIGNALS}
        try:
            yield self
        finally:
            for one, old in before.items():
                signal.signal(one, old)
