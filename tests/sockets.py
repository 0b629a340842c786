"""Which process listens where, as the kernel says it."""

from __future__ import annotations

import ipaddress
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

LISTENS = "0A"


class Socket(NamedTuple):
    address: str
    port: int
    command: str
    """First words of the command line of the process."""

    @property
    def loopback(self) -> bool:
        return ipaddress.ip_address(self.address).is_loopback


def listening(processes: Iterable[int]) -> set[Socket]:
    """TCP sockets on which these processes wait for connections. What ends meanwhile is left out."""
    found = set()
    for pid in processes:
        try:
            inodes = {_target(one) for one in Path(f"/proc/{pid}/fd").iterdir()}
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
        except OSError:
            continue
        for line in (line for table in tables for line in table.splitlines()[1:]):
            words = line.split()
            if words[3] == LISTENS and f"socket:[{words[9]}]" in inodes:
                address, port = words[1].split(":")
                found.add(Socket(_address(address), int(port, 16), command[:1000]))
    return found


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:  # closed meanwhile, as the listing of our own is
        return ""


def _address(held: str) -> str:
    """The kernel writes words of 32 bits in the order of the machine, which is little-endian here."""
    raw = b"".join(bytes.fromhex(held[at : at + 8])[::-1] for at in range(0, len(held), 8))
    one = ipaddress.ip_address(raw)
    mapped = getattr(one, "ipv4_mapped", None)
    return str(mapped or one)


@dataclass
class Watch:
    """Collects what ``processes()`` listen on until the block ends."""

    processes: Callable[[], list[int]]
    seen: set[Socket] = field(default_factory=set)

    def __enter__(self) -> Watch:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(20)

    def _look(self) -> None:
        while not self._over.wait(0.1):
            self.seen |= listening(self.processes())
