"""Any schema, any values, any damage through the whole chain: no crash, and no row that is not accounted for."""

from __future__ import annotations

import functools
import gzip
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operators.base import Annotator
from operators.language import tokens
from operators.language.identify import LanguageId
from operators.language.tokens import TokenCount
from operators.safety.tags import remove_tags
from tasks.source import ShardError, SourceColumns, open_source, read_source
from tasks.store import Store
from tasks.summary import RunSummary, Status
from tasks.verify import verify
from tests.bad_input import chain
from tests.small_job import rows_of
from tests.tasks.test_bad_input import corpus_of, files_of, records_of
from tests.toys import Picky

ROUTES = (("tag", "tokens >= 8 AND fine"), ("keep", "tokens >= 1 AND fine"))
STAGES = ("picky", "language", "harm_score", "tokens")
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


# -- the property --------------------------------------------------------------------------------------------------


class Harmless(Annotator):
    """Stands in for the harm scorer, which takes seconds to be trained."""

    version: ClassVar[str] = "1"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    adds: ClassVar[pa.Schema] = pa.schema([("harm_score", pa.int8())])

    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.table([pa.array([0] * table.num_rows, pa.int8())], schema=self.adds)


FIRST = Fuzzed("!first.jsonl", b'{"text": "A good row.", "more": 1, "id": "good"}\n', (b"A good row.",))
CARRYING = SourceColumns(mapping=(("more", "more"),))


@pytest.fixture(scope="module", autouse=True)
def one_tokenizer() -> Iterator[None]:
    """Loaded once and not by every worker: it takes half a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "load_tokenizer", functools.cache(tokens.load_tokenizer))
        yield


def run(web: Path, out: Path) -> RunSummary:
    operators = {"picky": Picky(), "language": LanguageId(), "harm_score": Harmless(), "tokens": TokenCount()}
    return chain(str(web), str(out), annotators=operators, carried={"more": "more"}, routes=ROUTES)


def expected(web: Path, shards: list[Fuzzed]) -> dict[str, list[bytes | None]]:
    """Text of every row of every shard that has to be read, the damaged ones as they read now."""
    dataset = open_source(str(web), CARRYING)
    found: dict[str, list[bytes | None]] = {}
    for shard, listed in zip(sorted(shards, key=lambda one: one.name), dataset.shards, strict=True):
        assert shard.name == listed.name
        try:
            table, _ = read_source(dataset, listed, ["more"])
        except ShardError as error:
            lost = str(error)
        else:
            lost = ""
        assert shard.readable is None or shard.readable is (lost == ""), lost
        if lost:
            assert "\n" not in lost and shard.name in lost
            continue
        texts = list(shard.texts)
        if shard.readable is None:
            rows = table.select(["text", "problem"]).to_pylist()
            texts = [None if row["problem"] else row["text"].encode() for row in rows]
        found[shard.name] = texts
    return found


def usable(text: bytes | None) -> bool:
    try:
        return bool(text) and bool(text.decode())  # type: ignore[union-attr]
    except UnicodeDecodeError:
        return False


def check(folder: Path, shards: list[Fuzzed]) -> None:
    web, out = folder / "web", folder / "out"
    shutil.rmtree(folder, ignore_errors=True)
    for shard in shards:
        file = web / shard.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(shard.data)
    rows = expected(web, shards)
    summary = run(web, out)
    output = Store(str(out))
    records = records_of(output)
    # a shard in which the operator fails on every row is no row's fault, and fails
    hopeless = set()
    for name, texts in rows.items():
        todo = [text for text in texts if usable(text)]
        if len(todo) > 1 and all(b"POISON" in text for text in todo if text):
            hopeless.add(name)
    for stage in STAGES:
        done = set(rows) - (hopeless if stage == "picky" else set())
        failed = {one.shard: one for one in _stage(summary, stage).failures}
        assert set(records[stage]) == done and set(failed) == {one.name for one in shards} - done
        assert all("\n" not in one.error and len(one.error) < 500 for one in failed.values())
        for name in done:
            check_stage(output, stage, records[stage][name], rows[name])
    corpus = [row for row in corpus_of(output, summary) if row["origin"] == "real"]
    kept = {
        (name, place): text
        for name, texts in rows.items()
        if name not in hopeless
        for place, text in enumerate(texts)
        if usable(text) and b"POISON" not in (text or b"") and b"REFUSE" not in (text or b"")
    }
    assert Counter((row["source_shard"], row["source_ordinal"]) for row in corpus) == Counter(kept.keys())
    for row in corpus:
        assert remove_tags(row["text"]).encode() == kept[row["source_shard"], row["source_ordinal"]]
        assert row["id"] is not None
    assert all(one.accounts.closed() for one in summary.stages)
    whole = not hopeless and set(rows) == {one.name for one in shards}
    assert (summary.status is Status.DONE) == whole, summary.messages
    found = verify(output)
    assert found.ok == whole and not any(one.problems for one in found.stages), found
    before = files_of(output)
    again = run(web, out)
    assert not any(stage.shards_made for stage in again.stages) and again.status is summary.status
    assert files_of(output) == before


def check_stage(output: Store, stage: str, record: Any, texts: list[bytes | None]) -> None:
    accounts = record.accounts
    assert accounts.closed() and accounts.rows_in == accounts.rows_out == len(texts)
    found = rows_of(output, record.path)
    assert dict(Counter(row["status"] for row in found)) == accounts.outcomes
    wrong = {place for place, text in enumerate(texts) if not usable(text)}
    if stage == "picky":
        wrong |= {n for n, text in enumerate(texts) if b"POISON" in (text or b"") or b"REFUSE" in (text or b"")}
    assert {place for place, row in enumerate(found) if row["status"] != "ok"} == wrong
    held = {row["ordinal"]: row for row in rows_of(output, record.quarantine)} if record.quarantine else {}
    assert set(held) == wrong
    for place, row in held.items():
        assert row["reason"] == found[place]["reason"] and row["row"] and row["id"] == found[place]["id"]
        text = texts[place]
        if text and not usable(text):
            assert row["row"] == text


def _stage(summary: RunSummary, name: str) -> Any:
    return next(one for one in summary.stages if one.name == name)


ANY = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


@settings(max_examples=20, **ANY)
@given(shards=inputs())
def test_any_input_is_accounted_for(tmp_path: Path, shards: list[Fuzzed]) -> None:
    check(tmp_path / "any", [FIRST, *shards])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=600, **ANY)
@given(shards=inputs())
def test_any_of_many_inputs_is_accounted_for(tmp_path: Path, shards: list[Fuzzed]) -> None:
    check(tmp_path / "any", [FIRST, *shards])
