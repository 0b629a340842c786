"""Crash points: every step of the commit protocol, numbered, as a place at which a process kills itself.

Nothing of the product knows of it. A child process wraps the calls that the protocol is made of (temporary file,
fsync, link, PUT, reading what stands there, removal), writes each step to a trace before it does it, and sends itself
SIGKILL at the one it was told. So a kill is no matter of timing, and what was hit can be counted.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import commit
from tasks.dataset import HIDDEN
from tests.small_job import Job

BEFORE, HALF, SENT, AFTER = "before", "half", "sent", "after"
"""``half``: of the file is written, or of the PUT's body is sent. ``sent``: all of it, and no answer waited for."""


@dataclass(frozen=True, slots=True, order=True)
class Kind:
    """``what``: kind of object. ``step``: what is done to it. ``moment``: where in it."""

    what: str
    step: str
    moment: str


@dataclass(frozen=True, slots=True)
class Point:
    """The ``nth`` time, from 0 on, that a process comes to a step of this kind."""

    kind: Kind
    nth: int


def what_of(path: str) -> str:
    """Kind of the object under a path, relative or absolute."""
    below = path.partition(f"{HIDDEN}/")[2].partition("/")[0]
    named = {"quarantine": "quarantine", "ledger": "ledger block", "records": "record", "manifests": "manifest"}
    return named.get(below, "shard" if not below or below.startswith("corpus-") else "paper")


class Steps:
    """Counts the steps of this process, and ends it at ``kill``."""

    def __init__(self, trace: Path, kill: Point | None) -> None:
        self._trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._kill, self._seen, self._lock = kill, Counter[Kind](), threading.Lock()
        self._here = threading.local()
        self.armed = ""

    def due(self, what: str, step: str, moment: str) -> bool:
        """Whether this is where to end. Told before the step is done, in the order in which the steps come."""
        kind = Kind(what, step, moment)
        with self._lock:
            nth, self._seen[kind] = self._seen[kind], self._seen[kind] + 1
            os.write(self._trace, f"{what}\t{step}\t{moment}\n".encode())
        return self._kill == Point(kind, nth)

    def at(self, what: str, step: str, moment: str) -> None:
        if self.due(what, step, moment):
            self.die()

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # never: the kernel does not come back from it

    def note(self, line: str) -> None:
        os.write(self._trace, f"{line}\n".encode())

    @contextmanager
    def around(self, what: str, step: str) -> Iterator[None]:
        self.at(what, step, BEFORE)
        yield
        self.at(what, step, AFTER)

    @contextmanager
    def about(self, path: str) -> Iterator[None]:
        """What this thread is at work on."""
        before, self._here.what = getattr(self._here, "what", ""), what_of(path)
        try:
            yield
        finally:
            self._here.what = before

    @property
    def what(self) -> str:
        """Empty where the thread is not in the commit protocol."""
        return str(getattr(self._here, "what", ""))


def everywhere(old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Puts ``new`` in the place of ``old`` in every module of ours that has taken it in by name."""
    for module in [one for name, one in sys.modules.items() if name.partition(".")[0] == "tasks"]:
        for name in [name for name, value in vars(module).items() if value is old]:
            setattr(module, name, new)


def install(steps: Steps) -> None:
    _wrap_protocol(steps)
    _wrap_files(steps)
    _wrap_puts(steps)


def _wrap_protocol(steps: Steps) -> None:
    commit_table, create, adopt, remove, read_footer = (
        commit.commit_table,
        commit.create,
        commit.adopt,
        commit.remove,
        commit.read_footer,
    )

    def committing(store: Any, path: str, *arguments: Any, **named: Any) -> Any:
        with steps.about(path):
            made = commit_table(store, path, *arguments, **named)
        steps.note(f"{'adopted' if made.adopted else 'created'}\t{path}")
        return made

    def creating(store: Any, path: str, data: bytes) -> bool:
        with steps.about(path):
            return create(store, path, data)

    def adopting(store: Any, path: str, key: str) -> Any:
        with steps.about(path), steps.around(steps.what, "look whether it stands"):
            return adopt(store, path, key)

    def removing(store: Any, path: str) -> None:
        with steps.around(what_of(path), "removal"):
            remove(store, path)

    def reading(file: Path) -> Any:
        with steps.around(steps.what, "reading what stands"):
            return read_footer(file)

    everywhere(commit_table, committing)
    everywhere(create, creating)
    everywhere(adopt, adopting)
    everywhere(remove, removing)
    everywhere(read_footer, reading)


def _wrap_files(steps: Steps) -> None:
    write_table, write_bytes, fsync, link = commit.pq.write_table, Path.write_bytes, os.fsync, os.link

    def table_written(table: Any, where: Path, **named: Any) -> None:
        with steps.around(steps.what, "temporary file"):
            write_table(table, where, **named)
            if steps.due(steps.what, "temporary file", HALF):
                os.truncate(where, where.stat().st_size // 2)
                steps.die()

    def bytes_written(file: Path, data: bytes) -> int:
        if not steps.what:
            return write_bytes(file, data)
        with steps.around(steps.what, "temporary file"):
            if steps.due(steps.what, "temporary file", HALF):
                write_bytes(file, data[: len(data) // 2])
                steps.die()
            return write_bytes(file, data)

    def synced(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if not steps.what:
            return fsync(descriptor)
        with steps.around(steps.what, "fsync of the folder" if folder else "fsync of the file"):
            return fsync(descriptor)

    def linked(file: Any, final: Any) -> None:
        with steps.around(steps.what, "link"):
            link(file, final)

    commit.pq.write_table = table_written
    Path.write_bytes = bytes_written  # type: ignore[assignment,method-assign]
    os.fsync = synced  # type: ignore[assignment]
    os.link = linked  # type: ignore[assignment]


def _wrap_puts(steps: Steps) -> None:
    import s3fs
    from aiohttp.http_writer import StreamWriter

    call, write = s3fs.S3FileSystem._call_s3, StreamWriter.write

    async def called(self: Any, method: str, *arguments: Any, **named: Any) -> Any:
        if method != "put_object":
            return await call(self, method, *arguments, **named)
        what = what_of(named["Key"])
        steps.at(what, "PUT", BEFORE)
        for moment in (HALF, SENT):
            if steps.due(what, "PUT", moment):
                steps.armed = moment
        answer = await call(self, method, *arguments, **named)
        steps.at(what, "PUT", AFTER)
        return answer

    async def written(self: Any, chunk: Any, **named: Any) -> None:
        if steps.armed:
            self.send_headers()
            self.transport.write(bytes(chunk)[: len(chunk) // 2] if steps.armed == HALF else bytes(chunk))
            steps.die()
        await write(self, chunk, **named)

    s3fs.S3FileSystem._call_s3 = called
    StreamWriter.write = written


def child(job: Job, trace: Path, kill: Point | None, environment: dict[str, str]) -> None:
    """Runs the job in this process, up to ``kill``."""
    os.environ.update(environment)
    install(Steps(trace, kill))
    job.run()


def steps_in(trace: Path) -> list[Kind]:
    """The steps that were begun, in order; those of a killed process too."""
    lines = [line.split("\t") for line in trace.read_text().splitlines()]
    return [Kind(*line) for line in lines if len(line) == 3]
