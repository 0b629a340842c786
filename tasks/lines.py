"""Lines of a stream that may be compressed (.gz, .zst, any number of members or frames each), and their JSON."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import IO, Any

import orjson
import zstandard

BROKEN = (OSError, EOFError, zlib.error, zstandard.ZstdError)
"""What reading a damaged or cut-off stream raises."""


def lines(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """The lines of ``stream``, decompressed as the ending of ``name`` says, without a byte order mark.

    Raises BROKEN for a damaged one.
    """
    if name.endswith(".gz"):
        stream = gzip.open(stream)  # type: ignore[assignment]
    elif name.endswith(".zst"):
        stream = io.BufferedReader(_Zstandard(stream), 1 << 20)
    if first := stream.readline():
        yield first.removeprefix(codecs.BOM_UTF8)
    yield from stream


def parsed(line: bytes) -> tuple[str | None, dict[str, Any]]:
    """What is wrong with a line that should be a JSON object, and the object."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"not valid JSON ({error.msg})", {}
    return (None, row) if isinstance(row, dict) else ("not a JSON object", {})


def said_in_json(value: Any) -> str | None:
    """A value that came from JSON, as JSON; None where it is nested too deeply: orjson reads deeper than it writes."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return None


class _Zstandard(io.RawIOBase):
    """Decompressed bytes of all frames. EOFError where the last one is cut off, which zstandard's reader says nothing
    of.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._frame: Any = None
        self._given = b""
        self._ready = memoryview(b"")  # sliced without copying

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._given = self._given or self._stream.read(1 << 16)
            if not self._given:
                if self._frame is not None:
                    raise EOFError("the last Zstandard frame is cut off")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(self._frame.decompress(self._given))
            self._given = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count
