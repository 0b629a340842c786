"""Rows and shards that cannot be used: each row is accounted for, whatever stands in it, and none is read short."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.source import ShardError, SourceColumns, check_columns, limited, open_source, read_source
from tasks.store import StoreError
from tests.tasks.test_source import PLAIN, jsonl, names, packed, parquet, rows
from tests.toys import documents

# -- rows that cannot be used --------------------------------------------------------------------------------------


def test_null_and_empty_texts_keep_their_place(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", text=["fine", None, "", " ", "end"])
    (tmp_path / "b.jsonl").write_bytes(jsonl({"text": "fine"}, {"text": None}, {"text": ""}, {}, {"text": "end"}))
    problems = [row["problem"] for row in rows(tmp_path)]
    assert problems[:5] == [None, "text is null", "text is empty", None, None]
    assert problems[5:] == [None, "text is null", "text is empty", "text is null", None]


def test_a_column_of_nulls_is_rows_without_text(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", text=pa.nulls(3), id=["a", "b", "c"])
    assert [row["problem"] for row in rows(tmp_path)] == ["text is null"] * 3


BAD = b"caf\xe9 \xff"


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.large_binary(), pa.binary_view(), pa.string(), pa.large_string(), pa.string_view()],
    ids=str,
)
def test_invalid_utf8_in_parquet_is_its_rows_problem_alone(tmp_path: Path, kind: pa.DataType) -> None:
    values = pa.array([b"good", BAD, "žluť".encode(), None], pa.binary())
    if kind in (pa.binary(), pa.large_binary(), pa.binary_view()):
        column = values.cast(kind)
    else:
        unchecked = pa.Array.from_buffers(pa.string(), len(values), values.buffers())
        column = unchecked.cast(kind) if kind != pa.string() else unchecked
    parquet(tmp_path / "a.parquet", id=["0", "1", "2", "3"], text=column)
    found = rows(tmp_path)
    assert [row["text"] for row in found] == ["good", None, "žluť", None]
    assert [row["problem"] for row in found] == [None, "text is not valid UTF-8", None, "text is null"]
    assert [row["raw"] for row in found] == [None, BAD, None, None]


def test_dictionary_and_polars_columns_are_text(tmp_path: Path) -> None:
    import polars as pl

    parquet(tmp_path / "a.parquet", text=pa.array(["x", "y", "x"]).dictionary_encode(), id=["0", "1", "2"])
    pl.DataFrame({"text": ["p", "q"], "id": ["3", "4"]}).write_parquet(tmp_path / "b.parquet")
    assert [(row["id"], row["text"]) for row in rows(tmp_path)] == [(str(n), t) for n, t in enumerate("xyxpq")]


def test_invalid_utf8_beside_the_text_is_no_text_and_no_id(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", id=pa.array([b"ok", BAD]), url=pa.array([BAD, b"u"]), text=["a", "b"])
    found = rows(tmp_path)
    assert [row["problem"] for row in found] == [None, None]
    assert found[0]["id"] == "ok" and len(found[1]["id"]) == 32
    assert [row["url"] for row in found] == [None, "u"]


def test_wrong_lines_in_jsonl_keep_their_bytes(tmp_path: Path) -> None:
    bad = [b'{"text": "cut o', b"[1, 2]", b'"text"', b'{"text": 7}', b'{"text": ["x"]}', b'{"text": "' + BAD + b'"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([b'{"text": "fine"}', *bad, b"", b'{"text": "end"}']))
    found = rows(tmp_path)
    assert [row["problem"] is None for row in found] == [True, *[False] * 6, True]
    assert [(row["raw"] or b"").rstrip(b"\n") for row in found[1:-1]] == bad
    reasons = [row["problem"] for row in found[1:-1]]
    assert reasons[1:5] == ["not a JSON object"] * 2 + ["text is int, not a string", "text is list, not a string"]
    assert all(reason.startswith("not valid JSON") for reason in (reasons[0], reasons[5]))


@pytest.mark.parametrize(
    "column", [pa.array([1, 2]), pa.array([["a"], ["b"]]), pa.array([{"x": 1}, {"x": 2}]), pa.array([True, False])]
)
def test_a_text_column_that_holds_no_text_fails_the_shard(tmp_path: Path, column: pa.Array) -> None:
    parquet(tmp_path / "a.parquet", text=column)
    with pytest.raises(ShardError, match="a.parquet: cannot be read .*not text"):
        rows(tmp_path)


# -- shards that cannot be read ------------------------------------------------------------------------------------


def damaged(good: bytes, how: str) -> bytes:
    if how == "cut off":
        return good[: len(good) * 2 // 3]
    if how == "last bytes gone":
        return good[:-3]
    middle = len(good) // 2
    return good[:middle] + bytes(byte ^ 0xFF for byte in good[middle : middle + 64]) + good[middle + 64 :]


@pytest.mark.parametrize("how", ["cut off", "last bytes gone", "overwritten"])
@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_damaged_shard_is_never_read_short(tmp_path: Path, name: str, how: str) -> None:
    table = documents(3000)
    if name.endswith("parquet"):
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        good = buffer.getvalue()
    else:
        data = jsonl(*table.to_pylist())
        # with the checksum that the zstd tool writes, which the library leaves out
        checked = zstandard.ZstdCompressor(write_checksum=True).compress
        good = gzip.compress(data) if name.endswith("gz") else checked(data)
    (tmp_path / name).write_bytes(damaged(good, how))
    with pytest.raises(ShardError, match=rf"{name}: cannot be read \(.+\)") as caught:
        rows(tmp_path)
    assert "\n" not in str(caught.value)
    dataset = open_source(str(tmp_path), PLAIN)
    if how == "cut off":
        with pytest.raises(StoreError):
            limited(dataset, 10**6)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_file_of_something_else_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"<html>not found</html>" * 9)
    dataset = open_source(str(tmp_path), PLAIN)
    with pytest.raises(StoreError, match=name):
        check_columns(dataset, dataset.shards[0])
    with pytest.raises(ShardError, match=name):
        read_source(dataset, dataset.shards[0], [])


def test_empty_shards_are_empty(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", text=pa.array([], pa.string()))
    for name in ("b.jsonl", "c.jsonl.gz", "d.jsonl.zst"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "f.jsonl.zst").write_bytes(zstandard.compress(b""))
    assert len(names(tmp_path)) == 6
    assert rows(tmp_path) == []


def test_a_shard_that_changes_after_the_listing_is_refused(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", text=["x"])
    dataset = open_source(str(tmp_path), PLAIN)
    file.unlink()
    parquet(file, text=["y"])
    with pytest.raises(StoreError, match="changed while it was read; run again"):
        read_source(dataset, dataset.shards[0], [])


# -- properties ----------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.sampled_from(["id", "text", "url", "date", "more"]) | st.text(), VALUES, max_size=6)
LINES = st.one_of(
    OBJECTS.map(lambda value: json.dumps(value).encode()),
    OBJECTS.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b"")),
)
CARRYING = SourceColumns(mapping=(("more", "more"),))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES, max_size=12), suffix=st.sampled_from(["", ".gz", ".zst"]), final=st.booleans())
def test_any_lines_are_accounted_for(tmp_path: Path, lines: list[bytes], suffix: str, final: bool) -> None:
    folder = tmp_path / "any"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / f"a.jsonl{suffix}").write_bytes(packed(suffix, b"\n".join(lines) + b"\n" * final))
    kept = [line for line in lines if line.strip()]
    found = rows(folder, CARRYING, ["more"])
    assert len(found) == len(kept)
    made = [row["id"] for row in found]
    assert all(isinstance(one, str) for one in made)
    for row, line in zip(found, kept, strict=True):
        if row["problem"] is None:
            assert isinstance(row["text"], str) and row["text"]
            assert row["text"] == orjson.loads(line)["text"]
        else:
            assert row["raw"] is None or row["raw"].rstrip(b"\n") == line.rstrip(b"\n")
    assert rows(folder, CARRYING, ["more"]) == found


CELLS = {
    pa.binary(): st.binary(max_size=12),
    pa.string(): st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(),
    pa.bool_(): st.booleans(),
}


@st.composite
def parquet_tables(draw: st.DrawFn) -> pa.Table:
    count = draw(st.integers(0, 10))
    columns = {}
    for name, kinds in {
        "text": [pa.binary(), pa.string()],
        "id": list(CELLS),
        "url": list(CELLS),
        "more": list(CELLS),
    }.items():
        kind = draw(st.sampled_from(kinds))
        cells = draw(st.lists(st.none() | CELLS[kind], min_size=count, max_size=count))
        if name == "text" or draw(st.booleans()) or name == "more":
            columns[name] = pa.array(cells, kind)
    return pa.table(columns)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=parquet_tables())
def test_any_parquet_rows_are_accounted_for(tmp_path: Path, table: pa.Table) -> None:
    folder = tmp_path / "any"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    pq.write_table(table, folder / "a.parquet")
    found = rows(folder, CARRYING, ["more"])
    assert len(found) == table.num_rows
    for row, text in zip(found, table.column("text").to_pylist(), strict=True):
        raw = text.encode() if isinstance(text, str) else text
        assert isinstance(row["id"], str)
        if row["problem"] is None:
            assert row["text"].encode() == raw
        elif row["problem"] == "text is not valid UTF-8":
            assert row["raw"] == raw
        else:
            assert not raw
