"""Foreign datasets: Parquet and JSONL (.gz, .zst) on any fsspec URL, read as rows with id, text, url and date.

A row that cannot be used (broken JSON, null or empty text, invalid UTF-8) keeps its place with a ``problem``. Missing
ids are made from source and content: BLAKE2b over the shard's relative path, the text, and how often it came before.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from operators.base import fingerprint
from tasks.dataset import Dataset, Shard
from tasks.lines import BROKEN, lines, parsed, said_in_json
from tasks.selection import glob_pattern
from tasks.store import Entry, Store, StoreError
from tasks.texts import as_text, decoded, holds_text, plain, without_views

ID, TEXT, URL, DATE, PROBLEM, RAW = "id", "text", "url", "date", "problem", "raw"
CANONICAL = (ID, TEXT, URL, DATE)
_SUFFIX = re.compile(r"\.(parquet|(jsonl|ndjson)(\.(gz|zst))?)$")
_LEFT_OUT = re.compile(r"(^|/)[._]")
_UNREADABLE = (pa.ArrowException, UnicodeDecodeError, *BROKEN)  # the second: names of columns in a damaged footer
_UNFIT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]|\?versionId=|(^|/)\.\.?(/|$)")
"""What no shard's name may hold: control characters and bytes that are no UTF-8, which no line of a report could show;
what s3fs takes for the version of another object; and steps to other folders."""


class SourceFormat(StrEnum):
    PARQUET = "parquet"
    JSONL = "jsonl"


class SourceColumns(BaseModel):
    """Our column -> the source's. ``text`` must exist; id, url and date may be absent; others are carried along."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mapping: tuple[tuple[str, str], ...] = ()

    def of(self, column: str) -> str:
        return dict(self.mapping).get(column, column)

    @property
    def view(self) -> str:
        """Hash of the mapping, which is a part of what a shard's rows are; empty without one."""
        return fingerprint(sorted(self.mapping)) if self.mapping else ""

    @property
    def carried(self) -> tuple[str, ...]:
        """Columns beyond the canonical four that the mapping asks for."""
        return tuple(ours for ours, _ in self.mapping if ours not in CANONICAL)


class ShardError(RuntimeError):
    """A shard that cannot be read as it stands: retrying does not help. One line that names it and the reason."""


def format_of(path: str) -> SourceFormat:
    found = _SUFFIX.search(path)
    if found is None:
        raise StoreError(f"{path}: not Parquet or JSONL (.parquet, .jsonl, .ndjson, .gz or .zst of the latter two)")
    return SourceFormat.PARQUET if found.group(1) == "parquet" else SourceFormat.JSONL


def root_of(url: str) -> Store:
    """The store that a listing of ``url`` would ask: its fixed part, without the glob."""
    return Store(_split(url)[0])


def open_source(url: str, columns: SourceColumns) -> Dataset:
    """Lists a file, a folder or a glob. Raises StoreError where nothing readable is found or a name is unfit."""
    root, pattern = _split(url)
    store = Store(root)
    file = _one_file(store) if pattern is None and _SUFFIX.search(root) else None
    if file is not None:
        store, entries = file
    else:
        entries = store.entries()
    if pattern is not None:
        matches = glob_pattern(pattern)
        entries = [entry for entry in entries if matches.fullmatch(entry.path)]
    shards = tuple(
        Shard(name=entry.path, path=entry.path, token=entry.token, size=entry.size, view=columns.view)
        for entry in entries
        if _SUFFIX.search(entry.path) and _fit(url, entry.path) and not _LEFT_OUT.search(entry.path)
    )
    if not shards:
        raise StoreError(f"{url}: no .parquet or .jsonl file found there; check the URL or the glob")
    return Dataset(store, shards, columns, mark=columns.view)


def _fit(url: str, path: str) -> bool:
    if found := _UNFIT.search(path):
        raise StoreError(f"{url}: {path!a} holds {found[0]!a}, which no shard's name may; rename or move it")
    return True


def _one_file(store: Store) -> tuple[Store, list[Entry]] | None:
    """The folder and the file that the URL names; None where it is a folder itself, as Spark likes to name them."""
    folder, _, name = store.url.rpartition("/")
    entry = Store(folder).entry(name)
    return None if entry is None else (Store(folder), [entry])


def limited(dataset: Dataset, rows: int, selected: str = "") -> Dataset:
    """The first ``rows`` rows in shard order; the last shard is cut.

    ``selected``: mark of the selection that chose the shards, as another choice is cut elsewhere.
    """
    mark = fingerprint(dataset.mark, "limit", rows, *([selected] if selected else []))
    kept: list[Shard] = []
    for shard in dataset.shards:
        if rows <= 0:
            break
        count = _count(dataset.store, shard, rows)
        kept.append(shard if count <= rows else replace(shard, head=rows))
        rows -= count
    return replace(dataset, shards=tuple(kept), mark=mark)


def check_columns(dataset: Dataset, shard: Shard) -> bool:
    """Opens one shard and refuses a dataset without the mapped columns. A line that names column and remedy.

    False where the shard holds no line and so says nothing of the columns.
    """
    assert dataset.columns is not None
    url = dataset.store.url_of(shard.path)
    with _opened(dataset.store, shard) as stream:
        if format_of(shard.path) is SourceFormat.PARQUET:
            try:
                names = set(pq.ParquetFile(stream).schema_arrow.names)
            except _UNREADABLE as error:
                why = _first_line(error)
                raise StoreError(f"{url}: not a readable Parquet file ({why}); mend it or move it away") from error
        else:
            found = _first_keys(stream, shard.path, url)
            if found is None:
                return False
            names = found
    wanted = [TEXT, *(ours for ours, _ in dataset.columns.mapping)]
    for ours in wanted:
        theirs = dataset.columns.of(ours)
        if theirs not in names:
            have = ", ".join(sorted(names)[:12])
            raise StoreError(
                f"{url}: no column {theirs!r} for {ours!r}; it has {have}. Map it with --columns {ours}=NAME"
            )
    return True


def read_source(dataset: Dataset, shard: Shard, columns: Sequence[str]) -> tuple[pa.Table, str]:
    """Rows of a shard with id, ``columns``, ``problem`` and ``raw`` (bytes of a row with a problem); and its SHA-256.

    Raises ShardError for a shard that cannot be read at all, StoreError where it changed since it was listed.
    """
    assert dataset.columns is not None
    wanted = list(dict.fromkeys([*columns, ID, TEXT]))
    with _fetched(dataset.store, shard) as (local, digest):
        try:
            if format_of(shard.path) is SourceFormat.PARQUET:
                table = _read_parquet(local, dataset.columns, wanted, shard.head, whole=not shard.content)
            else:
                table = _read_jsonl(local, shard.path, dataset.columns, wanted, shard.head)
        except _UNREADABLE as error:
            raise ShardError(f"{dataset.store.url_of(shard.path)}: cannot be read ({_first_line(error)})") from error
    after = dataset.store.entry(shard.path)
    if after is None or after.token != shard.token:
        raise StoreError(
            f"{dataset.store.url_of(shard.path)}: changed while it was read; run again to take it as it is now"
        )
    return _with_ids(table, shard.name), digest


def _read_parquet(file: Path, columns: SourceColumns, wanted: Sequence[str], head: int | None, whole: bool) -> pa.Table:
    """``whole``: looks at every column that the run will read. Damage is found by the first stage then, which goes on
    without the shard, and not by the build, which would have to do without a corpus.
    """
    looked_at = dict.fromkeys([*wanted, *CANONICAL, *columns.carried]) if whole else wanted
    parquet = pq.ParquetFile(file, page_checksum_verification=True)
    names = Counter(parquet.schema_arrow.names)
    present = {ours: columns.of(ours) for ours in looked_at if columns.of(ours) in names}
    if TEXT not in present:
        raise pa.ArrowInvalid(f"no column {columns.of(TEXT)!r}")
    for name in present.values():
        if names[name] > 1:
            raise pa.ArrowInvalid(f"{names[name]} columns are named {name!r}")
    table = parquet.read(columns=list(dict.fromkeys(present.values())))
    if head is not None:
        table = table.slice(0, head)
    arrays: dict[str, Any] = {}
    problems: list[str | None] = [None] * table.num_rows
    raws: list[bytes | None] = [None] * table.num_rows
    for ours in wanted:
        theirs = present.get(ours)
        if theirs is None:
            arrays[ours] = pa.nulls(table.num_rows, pa.string())
            continue
        column = table.column(theirs).combine_chunks()
        arrays[ours] = _strings(column, ours, problems, raws) if ours in CANONICAL else without_views(column)
    return _finish(arrays, problems, raws)


def _strings(column: pa.Array, ours: str, problems: list[str | None], raws: list[bytes | None]) -> pa.Array:
    """The column as valid UTF-8 strings; a text that is none is null and a problem, another value null alone."""
    if ours != TEXT:
        if ours == ID and pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        return as_text(column)
    column = plain(column)
    if not holds_text(column):
        raise pa.ArrowInvalid(f"column {ours!r} holds {column.type}, not text")
    strings, bad = decoded(column)
    for row, value in bad.items():
        problems[row], raws[row] = f"{ours} is not valid UTF-8", value
    return strings


def _read_jsonl(file: Path, name: str, columns: SourceColumns, wanted: Sequence[str], head: int | None) -> pa.Table:
    values: dict[str, list[Any]] = {ours: [] for ours in wanted}
    problems: list[str | None] = []
    raws: list[bytes | None] = []
    with file.open("rb") as stream:
        for line in lines(stream, name):
            if head is not None and len(problems) >= head:
                break
            if not line.strip():
                continue
            problem, row = parsed(line)
            for ours in wanted:
                value = row.get(columns.of(ours))
                if value is not None and not isinstance(value, str):
                    if ours == TEXT:
                        problem = problem or f"text is {type(value).__name__}, not a string"
                        value = None
                    else:
                        value = said_in_json(value)
                values[ours].append(value)
            problems.append(problem)
            raws.append(line if problem else None)
    arrays = {ours: pa.array(column, pa.string()) for ours, column in values.items()}
    return _finish(arrays, problems, raws)


def _finish(arrays: dict[str, Any], problems: list[str | None], raws: list[bytes | None]) -> pa.Table:
    texts = arrays[TEXT]
    for row in pc.indices_nonzero(pc.fill_null(pc.equal(pc.binary_length(texts), 0), True)).to_pylist():
        problems[row] = problems[row] or ("text is empty" if texts[row].is_valid else "text is null")
    arrays[PROBLEM] = pa.array(problems, pa.string())
    arrays[RAW] = pa.array(raws, pa.binary())
    return pa.table(arrays)


def _with_ids(table: pa.Table, name: str) -> pa.Table:
    ids = table.column(ID)
    if ids.null_count == 0:
        return table
    seen: Counter[str] = Counter()
    made: list[str] = []
    for given, text in zip(ids.to_pylist(), table.column(TEXT).to_pylist(), strict=True):
        if given is not None:
            made.append(given)
            continue
        content = hashlib.blake2b((text or "").encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        state = hashlib.blake2b(f"{name}\0{content}\0{seen[content]}".encode("utf-8", "surrogatepass"), digest_size=16)
        seen[content] += 1
        made.append(state.hexdigest())
    return table.set_column(table.column_names.index(ID), ID, pa.array(made, pa.string()))


@contextmanager
def _fetched(store: Store, shard: Shard) -> Iterator[tuple[Path, str]]:
    """The shard on this machine; one that is gone since it was listed is said to be."""
    with ExitStack() as stack:
        try:
            fetched = stack.enter_context(store.fetched(shard.path))
        except StoreError as error:
            if store.entry(shard.path) is not None:
                raise
            url = store.url_of(shard.path)
            raise StoreError(f"{url}: is gone since the input was listed; run again to go on without it") from error
        yield fetched


@contextmanager
def _opened(store: Store, shard: Shard) -> Iterator[IO[bytes]]:
    with store.fs.open(store.absolute(shard.path), "rb") as stream:
        yield stream


def _first_keys(stream: IO[bytes], path: str, url: str) -> set[str] | None:
    """Keys of the first JSON object; None of a shard without any line."""
    problem = None
    try:
        for line in lines(stream, path):
            if line.strip():
                problem, row = parsed(line)
                if problem is None:
                    return set(row)
    except _UNREADABLE as error:
        raise StoreError(f"{url}: cannot be read ({_first_line(error)})") from error
    if problem is None:
        return None
    raise StoreError(f"{url}: holds no JSON object; is it JSON lines?")


def _count(store: Store, shard: Shard, at_most: int) -> int:
    """Rows of the shard, counted no further than one above ``at_most``."""
    try:
        with _opened(store, shard) as stream:
            if format_of(shard.path) is SourceFormat.PARQUET:
                return int(pq.ParquetFile(stream).metadata.num_rows)
            count = 0
            for line in lines(stream, shard.path):
                count += bool(line.strip())
                if count > at_most:
                    break
            return count
    except _UNREADABLE as error:
        url = store.url_of(shard.path)
        raise StoreError(f"{url}: cannot be read ({_first_line(error)}); mend it or move it away") from error


def _split(url: str) -> tuple[str, str | None]:
    """The fixed folder of a URL and its glob, if it has one."""
    parts = url.split("/")
    for place, part in enumerate(parts):
        if any(mark in part for mark in "*?["):
            return "/".join(parts[:place]) or ("/" if url.startswith("/") else "."), "/".join(parts[place:])
    return url, None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
