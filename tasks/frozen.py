"""Ends a process that native code has frozen: it keeps Python's lock, so no other thread can run, not even the loop.

A thread of ours writes to a small process once a second. That one needs no lock of ours: when nothing has come for the
limit, it says so in one line and kills us. What other threads do, and for how long, has no part in it, and neither has
time in which we were stopped (Ctrl-Z, a debugger, a paused container).
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

WRITE_SECONDS = 1.0
LOOK_SECONDS = 0.25


class Watch:
    """From here to ``close``. ``state``: the limit in seconds as it is now, and the line to say when it is over."""

    def __init__(self, state: Callable[[], tuple[float, str]]) -> None:
        self._state = state
        self._over = threading.Event()
        command = [sys.executable, "-I", "-S", __file__, str(os.getpid())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
        threading.Thread(target=self._write, daemon=True, name="winnow-not-frozen").start()

    def close(self) -> None:
        self._over.set()
        self._process.kill()
        self._process.wait(10)

    def tell(self) -> None:
        """Says how it stands now: before something begins that may never let go."""
        assert self._process.stdin is not None
        limit, line = self._state()
        try:
            os.write(self._process.stdin.fileno(), f"{limit}\t{' '.join(line.split())}\n".encode())
        except BrokenPipeError:
            self._over.set()  # it was ended: by us, or by somebody who did not want it

    def _write(self) -> None:
        while not self._over.is_set():
            self.tell()
            self._over.wait(WRITE_SECONDS)


def _watch(watched: int) -> None:
    silent, limit, line, begun = 0.0, float("inf"), b"", b""
    while os.getppid() == watched:
        if select.select([0], [], [], LOOK_SECONDS)[0]:
            read = os.read(0, 1 << 16)
            if not read:
                return
            silent = 0.0
            *lines, begun = (begun + read).split(b"\n")
            if lines:
                told, _, line = lines[-1].partition(b"\t")
                limit = float(told)
        elif not _stopped(watched):
            silent += LOOK_SECONDS
        if silent >= limit and os.getppid() == watched:
            os.write(2, line + b"\n")
            os.kill(watched, signal.SIGKILL)
            return


def _stopped(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except OSError:
        return False


if __name__ == "__main__":
    _watch(int(sys.argv[1]))
