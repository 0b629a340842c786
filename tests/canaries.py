"""Secrets that are planted, and the search for them in everything that a run leaves and shows."""

from __future__ import annotations

import base64
import gzip
import io
import json
import lzma
import os
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import pyarrow.parquet as pq
import urllib3

LARGEST = 64 * 2**20
"""Bytes of a file that is read: larger ones are model weights and Ray's shared memory, which is looked at apart."""


@dataclass(frozen=True)
class Canary:
    """``name``: where it was planted."""

    name: str
    value: str

    @property
    def forms(self) -> dict[str, bytes]:
        """Independent of what the product masks by: the ways in which it may be written down."""
        raw = self.value.encode()
        found = {
            "as it is": raw,
            "in a URL": quote(self.value, safe="").encode(),
            "in a path": quote(self.value).encode(),
            "in hex": raw.hex().encode(),
            "in JSON": json.dumps(self.value)[1:-1].encode(),
            "as Python writes it": repr(self.value)[1:-1].encode(),
            "in UTF-16": self.value.encode("utf-16-le"),
        }
        for before in range(3):  # inside a longer text, as in "user:secret"
            whole = base64.b64encode(b"x" * before + raw)
            inner = whole[4 if before else 0 : len(whole) // 4 * 4 - 4]
            found[f"in base64 after {before} bytes"] = inner
            found[f"in base64 of URLs after {before} bytes"] = inner.replace(b"+", b"-").replace(b"/", b"_")
        return found


def canaries(**planted: str) -> list[Canary]:
    return [Canary(name, value) for name, value in planted.items()]


def found(held: bytes, wanted: list[Canary], where: str) -> list[str]:
    """A line for each canary that stands in the bytes, in any dress."""
    return [f"{where}: {one.name} {dress}" for one in wanted for dress, form in one.forms.items() if form in held]


def layers(held: bytes, path: str) -> Iterator[bytes]:
    """The bytes, and what is packed in them: tables and footers of Parquet, compressed streams."""
    yield held
    if held[:4] == b"PAR1" == held[-4:]:
        file = pq.ParquetFile(io.BytesIO(held))
        yield json.dumps(file.read().to_pylist(), default=str, ensure_ascii=False).encode()
        yield repr(file.schema_arrow.metadata).encode() + repr(file.metadata.metadata).encode()
        yield b"\n".join(value for value in (file.schema_arrow.metadata or {}).values())
    elif held[:2] == b"\x1f\x8b":
        yield gzip.decompress(held)
    elif held[:6] == b"\xfd7zXZ\0":
        yield lzma.decompress(held)
    elif held[:4] == b"\x28\xb5\x2f\xfd":
        import zstandard

        yield zstandard.ZstdDecompressor().decompress(held, max_output_size=LARGEST)
    elif path.endswith(".zlib"):
        yield zlib.decompress(held)


def in_bytes(held: bytes, wanted: list[Canary], where: str) -> list[str]:
    return sorted({line for layer in layers(held, where) for line in found(layer, wanted, where)})


def in_folder(folder: Path, wanted: list[Canary], leave_out: tuple[str, ...] = ()) -> tuple[list[str], int]:
    """What is found below the folder, in names and contents, and how many files were read."""
    lines: list[str] = []
    count = 0
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        lines += found(name.encode("utf-8", "surrogateescape"), wanted, f"the name {path}")
        if path.is_symlink():
            lines += found(os.readlink(path).encode(), wanted, f"the link {path}")
        elif path.is_file() and not name.endswith(leave_out) and path.stat().st_size <= LARGEST:
            count += 1
            lines += in_bytes(path.read_bytes(), wanted, str(path))
    return lines, count


@dataclass
class Sampler:
    """Looks at command lines, process titles and a page of metrics all the time, until the block ends."""

    wanted: list[Canary]
    metrics: str = ""
    lines: set[str] = field(default_factory=set)
    looked: int = 0
    commands: set[str] = field(default_factory=set)
    pages: int = 0

    def __enter__(self) -> Sampler:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(20)

    def _look(self) -> None:
        http = urllib3.PoolManager(timeout=2.0, retries=False)
        while not self._over.wait(0.1):
            self.looked += 1
            for process in Path("/proc").iterdir():
                if not process.name.isdigit():
                    continue
                for kind in ("cmdline", "comm"):
                    try:
                        held = (process / kind).read_bytes()
                    except OSError:  # it has ended
                        continue
                    if kind == "cmdline":
                        self.commands.add(held.replace(b"\0", b" ").decode(errors="replace")[:200])
                    self.lines |= set(found(held, self.wanted, f"/proc/{process.name}/{kind}"))
            if self.metrics:
                try:
                    page = http.request("GET", self.metrics).data
                except urllib3.exceptions.HTTPError:  # not up yet
                    continue
                self.pages += 1
                self.lines |= set(found(page, self.wanted, "the metrics"))
