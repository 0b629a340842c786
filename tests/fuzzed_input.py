"""Inputs of any schema, any values and any damage, as Hypothesis draws them."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from hypothesis import strategies as st

LETTERS = st.characters(exclude_categories=["Cs"])
WORDS = st.sampled_from(
    ["POISON", "REFUSE", "stone", "<|potentially_unsafe_content|>", "\0", "\n", " ", "日本", "👩\u200d👧"]
)
TEXTS = st.lists(WORDS | st.text(LETTERS, max_size=6), max_size=12).map(" ".join) | st.text(LETTERS, max_size=4)
RAW = TEXTS.map(str.encode) | st.binary(max_size=12)

# -- columns of any type -------------------------------------------------------------------------------------------

INTS = st.integers(-(2**31), 2**31 - 1)
TEXT_KINDS: dict[Any, Any] = {
    pa.string(): TEXTS,
    pa.large_string(): TEXTS,
    pa.string_view(): TEXTS,
    pa.binary(): RAW,
    pa.large_binary(): RAW,
    pa.binary_view(): RAW,
    pa.null(): st.none(),
}
OTHER_KINDS: dict[Any, Any] = {
    pa.int8(): st.integers(-128, 127),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
    pa.float16(): st.floats(width=16),
    pa.bool_(): st.booleans(),
    pa.decimal128(20, 3): INTS.map(lambda n: Decimal(n) / 1000),
    pa.decimal256(60, 0): INTS.map(Decimal),
    pa.binary(16): st.binary(min_size=16, max_size=16),
    pa.date32(): INTS,
    pa.timestamp("us"): st.integers(-(2**63), 2**63 - 1),
    pa.timestamp("ns", "Europe/Berlin"): st.integers(-(2**63), 2**63 - 1),
    pa.timestamp("ms", "No/Where"): st.integers(-(2**50), 2**50),
    pa.time64("us"): st.integers(0, 86_399_999_999),
    pa.duration("s"): INTS,
    pa.uuid(): st.binary(min_size=16, max_size=16),
    pa.json_(): TEXTS,
    pa.list_(pa.string()): st.lists(st.none() | TEXTS, max_size=3),
    pa.large_list(pa.binary()): st.lists(st.binary(max_size=4), max_size=3),
    pa.struct([("a", pa.int32()), ("b", pa.list_(pa.float64()))]): st.fixed_dictionaries(
        {"a": st.none() | INTS, "b": st.none() | st.lists(st.floats(), max_size=2)}
    ),
    pa.map_(pa.string(), pa.timestamp("s", "UTC")): st.lists(st.tuples(TEXTS, INTS), max_size=2),
}


def array(kind: pa.DataType, cells: list[Any], as_dictionary: bool) -> pa.Array:
    made = pa.array(cells, kind)
    plain = kind in (pa.string(), pa.binary(), pa.int8(), pa.float64())
    return made.dictionary_encode() if as_dictionary and plain else made


@st.composite
def column(draw: st.DrawFn, count: int, kinds: Mapping[Any, Any]) -> pa.Array:
    kind = draw(st.sampled_from(list(kinds)))
    cells = draw(st.lists(st.none() | kinds[kind], min_size=count, max_size=count))
    return array(kind, cells, draw(st.booleans()))


# -- shards --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fuzzed:
    """``texts``: bytes of each row's text as Python reads them, None where there is none. ``readable``: whether the
    shard has to be read; None where damage decides it."""

    name: str
    data: bytes
    texts: tuple[bytes | None, ...] = ()
    lines: tuple[bytes, ...] = ()
    readable: bool | None = True


@st.composite
def parquet_shards(draw: st.DrawFn, name: str) -> Fuzzed:
    count = draw(st.integers(0, 7))
    text = draw(column(count, TEXT_KINDS) if draw(st.integers(0, 9)) else column(count, OTHER_KINDS))
    held = [("text", text)]
    for other in ("id", "url", "date", "more", "junk"):
        if draw(st.booleans()):
            held.append((other, draw(column(count, {**TEXT_KINDS, **OTHER_KINDS}))))
    trouble = draw(st.integers(0, 19))
    if trouble == 0:
        held = held[1:]  # no text
    elif trouble == 1:
        held.append(("text", text))
    held = draw(st.permutations(held)) or [("junk", pa.nulls(count))]
    table = pa.table([values for _, values in held], names=[one for one, _ in held])
    data = io.BytesIO()
    pq.write_table(
        table,
        data,
        compression=draw(st.sampled_from(["none", "snappy", "gzip", "brotli", "lz4", "zstd"])),
        row_group_size=draw(st.sampled_from([1, 2, 100])),
        use_dictionary=draw(st.booleans()),
        data_page_version=draw(st.sampled_from(["1.0", "2.0"])),
        write_page_checksum=draw(st.booleans()),
        store_schema=draw(st.booleans()),
    )
    stored = text.dictionary_decode() if pa.types.is_dictionary(text.type) else text
    kind = stored.type.storage_type if stored.type == pa.json_() else stored.type
    readable = trouble > 1 and kind in TEXT_KINDS
    values = stored.cast(pa.binary()).to_pylist() if readable and kind != pa.null() else [None] * count
    return draw(damaged(Fuzzed(name, data.getvalue(), tuple(values), readable=readable)))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.fixed_dictionaries(
    {"text": TEXTS | VALUES}, optional=dict.fromkeys(("id", "url", "date", "more", "junk"), VALUES)
)
LINES = st.one_of(
    OBJECTS.map(lambda value: json.dumps(value).encode()),
    OBJECTS.map(lambda value: json.dumps(value, ensure_ascii=False).encode()),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.text(max_size=4).map(lambda text: json.dumps({"text": text}).encode()),  # lone surrogates as escapes
    st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"")),
    st.just(b'{"text": "deep", "more": ' + b"[" * 400 + b"]" * 400 + b"}"),
)


@st.composite
def jsonl_shards(draw: st.DrawFn, name: str) -> Fuzzed:
    suffix, pack = draw(st.sampled_from([("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress)]))
    lines = draw(st.lists(LINES, max_size=7))
    body = b"\xef\xbb\xbf" * draw(st.booleans()) + b"\n".join(lines) + b"\n" * draw(st.booleans())
    rows = tuple(line.removeprefix(b"\xef\xbb\xbf") if n == 0 else line for n, line in enumerate(lines))
    rows = tuple(line for line in rows if line.strip())
    shard = Fuzzed(f"{name}.jsonl{suffix}", pack(body), tuple(map(_text_of, rows)), rows)
    return draw(damaged(shard)) if suffix else shard


def _text_of(line: bytes) -> bytes | None:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    text = row.get("text") if isinstance(row, dict) else None
    return text.encode() if isinstance(text, str) else None


@st.composite
def damaged(draw: st.DrawFn, shard: Fuzzed) -> Fuzzed:
    data = bytearray(shard.data)
    if not data or draw(st.integers(0, 3)):
        return shard
    tail = draw(st.booleans())  # where Parquet keeps what it says of itself
    for _ in range(draw(st.sampled_from([1, 1, 2, 9]))):
        least = max(0, len(data) - 400) if tail else 0
        data[draw(st.integers(least, len(data) - 1))] = draw(st.integers(0, 255))
    if not draw(st.integers(0, 4)):
        del data[draw(st.integers(0, len(data) - 1)) :]
    if bytes(data) == shard.data:
        return shard
    return Fuzzed(shard.name, bytes(data), readable=None)


@st.composite
def inputs(draw: st.DrawFn) -> list[Fuzzed]:
    made = []
    for number in range(draw(st.integers(1, 4))):
        name = f"{number}-{draw(st.sampled_from(['part', 'a b', 'x/ü', '%20#?']))}"
        made.append(draw(jsonl_shards(name) if draw(st.booleans()) else parquet_shards(f"{name}.parquet")))
    return made
