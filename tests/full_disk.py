"""A small disk that is really full: a tmpfs mount, where the system allows one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def full_disk(place: Path, size: int, free: int) -> Iterator[Path]:
    """A disk of ``size`` bytes of which about ``free`` are free. Skips the test where nothing may be mounted."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "winnow-test", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here, so no disk can be filled: {done.stderr.strip()}")
    try:
        fill(place, free)
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, free: int) -> None:
    """Fills the disk up to ``free`` bytes with one file, ``ballast``."""
    with (place / "ballast").open("ab") as stream:
        while (left := shutil.disk_usage(place).free - free) > 0:
            os.posix_fallocate(stream.fileno(), os.fstat(stream.fileno()).st_size, left)


def empty(place: Path) -> None:
    """Frees what ``fill`` took."""
    (place / "ballast").unlink()
