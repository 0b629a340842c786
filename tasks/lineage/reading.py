"""Single rows and single columns out of Parquet files in storage, with as few bytes as they need, counted."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.store import Store, StoreError, explain


@dataclass
class Tally:
    """What was read. ``requests``: ranges asked of the store."""

    bytes: int = 0
    requests: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, size: int) -> None:
        with self._lock:
            self.bytes += size
            self.requests += 1


class _Counted(io.RawIOBase):
    """A stream that tells a tally what is read from it."""

    def __init__(self, stream: Any, tally: Tally) -> None:
        self._stream, self._tally = stream, tally

    def read(self, size: int = -1) -> bytes:
        data = bytes(self._stream.read(size))
        self._tally.add(len(data))
        return data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self._stream.tell())


@contextmanager
def opened(store: Store, path: str, tally: Tally) -> Iterator[pq.ParquetFile]:
    """The file, of which only the ranges are fetched that are read. Raises StoreError."""
    try:
        # no read-ahead: a remote file's default fetches up to 50 MB beyond every range
        with store.fs.open(store.absolute(path), "rb", cache_type="none") as stream:
            yield pq.ParquetFile(_Counted(stream, tally), pre_buffer=True)
    except (pa.ArrowException, OSError) as error:
        raise _explained(store, path, error) from error
    except StoreError:
        raise
    except Exception as error:
        if type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp", "gcsfs", "s3fs")):
            raise explain(store.url_of(path), error) from error
        raise


def _explained(store: Store, path: str, error: Exception) -> StoreError:
    if isinstance(error, FileNotFoundError):
        return StoreError(f"{store.url_of(path)}: is gone; the same command again makes it anew")
    return explain(store.url_of(path), error)


def row_at(file: pq.ParquetFile, ordinal: int, columns: Sequence[str] | None = None) -> dict[str, Any] | None:
    """One row by number, reading its row group alone; None beyond the end."""
    start = 0
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if ordinal < start + rows:
            wanted = None if columns is None else [one for one in columns if one in file.schema_arrow.names]
            table = file.read_row_group(group, columns=wanted, use_threads=False)
            return dict(table.slice(ordinal - start, 1).to_pylist()[0])
        start += rows
    return None


def rows_where(file: pq.ParquetFile, column: str, value: str | int) -> list[int]:
    """Numbers of the rows whose ``column`` is ``value``; row groups are left out by their statistics."""
    place = file.schema_arrow.names.index(column)
    found: list[int] = []
    start = 0
    for group in range(file.metadata.num_row_groups):
        held = file.metadata.row_group(group)
        if _may_hold(held.column(place).statistics, value):
            values = file.read_row_group(group, columns=[column], use_threads=False).column(0)
            matches = pc.fill_null(pc.equal(values, pa.scalar(value, values.type)), False)
            found += [start + int(row) for row in np.flatnonzero(matches.to_numpy(zero_copy_only=False))]
        start += held.num_rows
    return found


def _may_hold(statistics: Any, value: str | int) -> bool:
    if statistics is None or not statistics.has_min_max:
        return True
    low, high = statistics.min, statistics.max
    if isinstance(value, str):  # Parquet orders strings by their bytes
        raw = value.encode("utf-8", "surrogatepass")
        return bool(_raw(low) <= raw <= _raw(high))
    return bool(low <= value <= high)


def _raw(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
