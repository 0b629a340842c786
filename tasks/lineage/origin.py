"""The row of the user's own file that a document is, read again if the file is still the one that the run read."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from tasks.lineage.facts import Source
from tasks.lineage.reading import Tally, opened, row_at
from tasks.lines import BROKEN, lines
from tasks.records import InputShard
from tasks.source import CANONICAL, ID, SourceColumns, SourceFormat, format_of, root_of
from tasks.store import Store, StoreError
from tasks.version import Version

AS_READ, CHANGED, GONE = "as_read", "changed", "gone"


def source_row(version: Version, shard: InputShard, ordinal: int, tally: Tally) -> Source:
    """``shard``: what the run's records say that they read. Never raises for a source that is no longer there."""
    root = root_of(version.run.input)
    folder, _, name = root.url.rpartition("/")
    store = Store(folder) if name == shard.path else root  # the input was one file
    content = shard.content_id.split(":", 1)[0]
    told = Source(url=store.url_of(shard.path), row=ordinal, content=content, state=AS_READ)
    try:
        entry = store.entry(shard.path)
        if entry is None:
            return told.model_copy(update={"state": GONE, "why": _absent(version.run.input)})
        if entry.token != shard.token:
            return told.model_copy(update={"state": CHANGED, "why": "the file was written again since the run read it"})
        columns = SourceColumns(mapping=tuple(sorted((version.run.parameters.get("columns") or {}).items())))
        values = _read(store, shard.path, columns, ordinal, tally)
    except (StoreError, pa.ArrowException, *BROKEN) as error:
        return told.model_copy(update={"state": GONE, "why": " ".join(str(error).split())})
    return told.model_copy(update={"values": {name: plain(value) for name, value in values.items()}})


def _absent(url: str) -> str:
    if "://" in url or Path(url).expanduser().is_absolute():
        return "the file is not there any more"
    return f"not found from this folder; the run was given the relative path {url}"


def _read(store: Store, path: str, columns: SourceColumns, ordinal: int, tally: Tally) -> dict[str, Any]:
    wanted = {ours: columns.of(ours) for ours in (*CANONICAL, *columns.carried) if ours != ID}
    if format_of(path) is SourceFormat.PARQUET:
        with opened(store, path, tally) as file:
            row = row_at(file, ordinal, list(dict.fromkeys(wanted.values()))) or {}
    else:
        row = _line(store, path, ordinal, tally)
    return {ours: row.get(theirs) for ours, theirs in wanted.items()}


def _line(store: Store, path: str, ordinal: int, tally: Tally) -> dict[str, Any]:
    """Row of a JSON lines file, which has to be read up to it. A broken line is an empty row, with its bytes."""
    with store.fs.open(store.absolute(path), "rb") as stream:
        row = -1
        for line in lines(stream, path):
            if line.strip():
                row += 1
            if row == ordinal and line.strip():
                tally.add(int(stream.tell()))
                try:
                    held = orjson.loads(line)
                except orjson.JSONDecodeError:
                    return {"text": line}
                return held if isinstance(held, dict) else {"text": line}
    return {}


def plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return f"base64:{base64.b64encode(value).decode()}"
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    return str(value)
