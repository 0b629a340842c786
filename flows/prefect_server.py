"""Prefect's server as a child of ours, on loopback: for one run where the user has named none, and for `winnow serve`.

Prefect would start one itself, in our process group: Ctrl-C then ends it first, and the run with it. Ours has a
session of its own, and the kernel ends it with us, even if we are killed.

The file is also the server's program, started by its path: it imports nothing of winnow.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

START_SECONDS = 120.0
STOP_SECONDS = 5.0
PR_SET_PDEATHSIG = 1  # prctl(2)
ELSEWHERE = "start one with `prefect server start` and set PREFECT_API_URL to it"


class NoServer(RuntimeError):
    """Prefect's API could not be started: one line that says so, and the remedy."""


@contextmanager
def prefect_api() -> Iterator[None]:
    """Sets PREFECT_API_URL for the flows inside. Leaves alone what the user's environment or profile says."""
    import prefect.context
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():
        yield
        return
    with socket.create_server(("127.0.0.1", 0)) as door:
        url = f"http://127.0.0.1:{door.getsockname()[1]}/api"
        server = start_server(
            door, {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        )
    try:
        await_server(server, url)
        os.environ["PREFECT_API_URL"] = url
        prefect.context.refresh_global_settings_context()
        yield
    finally:
        os.environ.pop("PREFECT_API_URL", None)
        prefect.context.refresh_global_settings_context()
        end(server, STOP_SECONDS)


def start_server(door: socket.socket, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A server on the listening socket ``door``, with our environment and ``environment``."""
    return subprocess.Popen(
        [sys.executable, "-P", __file__, str(door.fileno()), str(os.getpid())],
        pass_fds=[door.fileno()],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


def end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Asks the process to end, and ends it where it has not after ``seconds``."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def await_server(server: subprocess.Popen[bytes], url: str, remedy: str = ELSEWHERE) -> None:
    """Returns once the API at ``url`` answers. Raises NoServer where it does not."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise NoServer(f"Prefect's API server ended with code {server.returncode} before it answered; {remedy}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):  # noqa: S310  # our own loopback URL
                return
        except OSError:
            time.sleep(0.1)
    raise NoServer(f"Prefect's API server did not answer within {START_SECONDS:.0f} s; {remedy}")


def serve(descriptor: int, parent: int) -> None:
    """The server's own process: serves on the socket it inherited and dies with ``parent``."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before we asked to be told
        return
    import uvicorn

    config = uvicorn.Config(
        "prefect.server.api.server:create_app",
        factory=True,
        log_level="critical",
        lifespan="on",
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
