"""What runs in a worker's process on a cluster: looks whether code and packages are the driver's, then is the worker.

Everything here is pickled by value, so that it also runs on a node that has no winnow or another one, and can say so:
it may use the standard library alone. The worker itself comes as bytes and is opened after the look.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import pickle
import platform
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NOTHING = "none"


def installed(packages: Sequence[str]) -> dict[str, str]:
    """Version of Python and of each package, and a digest of the code that workers run; ``none`` where missing."""
    found = {"Python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = NOTHING
    digest = hashlib.sha256()
    for room in ("operators", "tasks"):
        spec = importlib.util.find_spec(room)
        for folder in sorted(spec.submodule_search_locations or ()) if spec else ():
            for file in sorted(Path(folder).rglob("*")):
                inside = file.relative_to(folder)
                # what editors and tools leave behind is no code: `.model.py.swp`, `.mypy_cache/`
                hidden = any(part.startswith(".") or part == "__pycache__" for part in inside.parts)
                if file.is_file() and not hidden:
                    digest.update(f"{room}/{inside.as_posix()}\0".encode())
                    digest.update(hashlib.sha256(file.read_bytes()).digest())
    return {**found, "winnow's code": digest.hexdigest()[:12]}


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """What differs, for a person: ``winnow-corpus 0.0.9 there and 0.1.0 here``; empty where nothing does."""
    names = [name for name in here if there.get(name, NOTHING) != here[name]]
    return ", ".join(f"{name} {there.get(name, NOTHING)} there and {here[name]} here" for name in names)


def look(packages: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Host name of this node, and what is installed on it."""
    return socket.gethostname(), installed(packages)


class Actor:
    """Forwards to the worker. Its threads let ``beat`` answer while ``process`` works.

    ``expected``: what has to be installed here, empty where this is the driver's own machine and needs no look.
    """

    def __init__(self, packed: bytes, expected: dict[str, str]) -> None:
        self.packed, self.expected = packed, expected
        self.worker: Any = None
        self.scrubbing: Any = None

    def setup(self, environment: Mapping[str, str | None] | None = None) -> None:
        """Raises ValueError where this node is not what the driver is.

        ``environment``: secrets that the worker needs, None where a variable must not be set. They come as the argument
        of a call, which goes from process to process and is kept nowhere; Ray's own way (runtime_env) stands in the
        cluster's tables and logs.
        """
        for name, value in (environment or {}).items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if self.expected:
            host, there = look([name for name in self.expected if name not in ("Python", "winnow's code")])
            if told := differences(self.expected, there):
                raise ValueError(f"node {host} is not like the driver: {told}; give all nodes the same image")
        self.worker = pickle.loads(self.packed)  # noqa: S301  # from our own driver
        from tasks.credentials import scrubbing  # the code is the driver's, so it is there

        self.scrubbing = scrubbing  # this machine may have secrets of its own, which the driver does not know
        with scrubbing():
            self.worker.setup()

    def process(self, unit: Any) -> Any:
        with self.scrubbing():
            return self.worker.process(unit)

    def beat(self) -> Any:
        return self.worker.beat()

    def drain(self) -> None:
        if self.worker is not None:
            self.worker.drain()

    def close(self) -> None:
        self.worker.close()
