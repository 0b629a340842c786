"""Which runs are at work at an output root: each leaves a note when it begins and takes it away when it ends.

A note is no lock: nothing waits for it, and the note of a killed run holds nobody up. Whoever asks on the same machine
sees whether the process still lives. From elsewhere a note counts while the root is written to, or was a while ago.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime

import orjson
from pydantic import BaseModel

from tasks.commit import create, remove
from tasks.dataset import HIDDEN
from tasks.runs import run_ids
from tasks.store import Entry, Store, StoreError

RUNNING = f"{HIDDEN}/running"
QUIET_SECONDS = 6 * 3600.0
"""A run of another machine that has written nothing for so long is taken for dead. A shard takes minutes, a block of
the ledger one; a worker that stands still is killed after --stall-seconds."""


class Note(BaseModel):
    """``machine``: one boot of one machine, or of one container on it, empty where that is not known. ``process``: its
    number and start, so that a number that was given out again is no sign of life.
    """

    run_id: str
    began: str
    machine: str
    process: str


def come(store: Store, run_id: str) -> None:
    began = datetime.now(UTC).isoformat(timespec="seconds")
    note = Note(run_id=run_id, began=began, machine=_machine(), process=_process(os.getpid()))
    create(store, _path(run_id), orjson.dumps(note.model_dump()))


def leave(store: Store, run_id: str) -> None:
    remove(store, _path(run_id))


def at_work(store: Store, entries: Sequence[Entry], now: float) -> list[Note]:
    """Notes of runs that may be at work. ``entries``: everything at the root; ``now``: seconds since the epoch."""
    ended = set(run_ids(store))
    # the notes themselves are among the entries, so a run that has just begun has just written
    last_write = max((entry.modified or now for entry in entries), default=0.0)
    found: list[Note] = []
    for entry in entries:
        if not entry.path.startswith(f"{RUNNING}/"):
            continue
        note = _read(store, entry)
        if note is None or note.run_id in ended:
            continue
        if note.machine and note.machine == _machine():
            alive = note.process == _process(int(note.process.split("-")[0]))
        else:
            alive = now - last_write < QUIET_SECONDS
        if alive:
            found.append(note)
    return found


def _read(store: Store, entry: Entry) -> Note | None:
    try:
        return Note.model_validate(orjson.loads(store.read(entry.path)))
    except StoreError:
        if store.entry(entry.path) is None:  # the run ended since the listing
            return None
        raise
    except ValueError as error:  # orjson's and pydantic's alike
        raise StoreError(
            f"{store.url_of(entry.path)}: not a readable note of a run; remove it once none runs"
        ) from error


def _path(run_id: str) -> str:
    return f"{RUNNING}/{run_id}.json"


def _machine() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as stream:
            return f"{stream.read().strip()}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _process(number: int) -> str:
    """Number and start of a process, the number alone where there is none."""
    try:
        with open(f"/proc/{number}/stat") as stream:
            return f"{number}-{stream.read().rsplit(')', 1)[1].split()[19]}"
    except OSError:
        return f"{number}"
