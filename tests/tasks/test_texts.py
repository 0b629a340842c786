"""Columns of any type as text, names that no shard may have, and damage that only a checksum sees."""

from __future__ import annotations

import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.source import ShardError, SourceColumns, check_columns, open_source, read_source
from tasks.store import Entry, Store, StoreError
from tasks.summary import Status
from tasks.texts import as_text
from tests.bad_input import chain
from tests.tasks.test_source import jsonl, names, packed, parquet, rows
from tests.toys import Judged, Words, documents

UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")
BYTES = b"\xff" * 16


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array(["a", None]), ["a", None]),
        (pa.array([1, None]), ["1", None]),
        (pa.array([1.5, float("nan")]), ["1.5", "nan"]),
        (pa.array([1, None], pa.float16()), ["1", None]),
        (pa.array([Decimal("1.20"), None]), ["1.20", None]),
        (pa.array([0, None], pa.date32()), ["1970-01-01", None]),
        (pa.array([0], pa.timestamp("s", "Nowhere/Atall")), [None]),
        (pa.array([2**62], pa.timestamp("us")), ["<value out of range: 4611686018427387904>"]),
        (pa.array([BYTES, b"b" * 16], pa.binary(16)), [None, "b" * 16]),
        (pa.array([UUID.bytes], pa.uuid()), [str(UUID)]),
        (pa.array(["{}"], pa.json_()), ["{}"]),
        (pa.array([b"\xff", b"a"]).dictionary_encode(), [None, "a"]),
        (pa.array([[1, None], None]), ["[1,null]", None]),
        (pa.array([{"a": BYTES[:1], "b": Decimal(1)}]), ['{"a":"\\\\xff","b":"1"}']),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())), ['[["k",1]]']),
        (pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"]), [None]),
        (pa.chunked_array([["a"], ["b"]]), ["a", "b"]),
        (pa.chunked_array([], pa.string()), []),
    ],
    ids=lambda value: str(value.type) if hasattr(value, "type") else "",
)
def test_any_column_is_text(column: Any, said: list[str | None]) -> None:
    text = as_text(column)
    assert text.type == pa.string() and text.to_pylist() == said
    text.validate(full=True)


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([1.0, float("nan")]),
        pa.array([1.0, float("nan")], pa.float16()),
        pa.array([b"1", BYTES]),
        pa.array([b"a" * 16, BYTES], pa.binary(16)),
        pa.array([UUID.bytes, None], pa.uuid()),
        pa.array([[1], None]),
        pa.array([{"n": 1}, None]),
    ],
    ids=lambda column: str(column.type),
)
def test_an_id_of_any_type_is_kept_and_what_is_none_is_made(tmp_path: Path, ids: pa.Array) -> None:
    parquet(tmp_path / "a.parquet", id=ids, text=["a", "b"])
    given, made = [row["id"] for row in rows(tmp_path)]
    assert given in ("1", "a" * 16, str(UUID), "[1]", '{"n":1}')
    assert len(made) == 32 and int(made, 16)


@pytest.mark.parametrize("kind", [pa.string_view(), pa.binary_view(), pa.list_(pa.string_view())], ids=str)
def test_a_carried_column_of_views_comes_into_the_corpus(tmp_path: Path, kind: pa.DataType) -> None:
    """Arrow's take knows no views."""
    held = [["v0"], ["v1"], ["v2"]] if pa.types.is_list(kind) else ["v0", "v1", "v2"]
    parquet(tmp_path / "web" / "a.parquet", text=["one", None, "three"], more=pa.array(held, kind))
    operators = {"tagged": Judged(), "tokens": Words()}
    routes = (("keep", "tokens >= 1"),)
    url, out = str(tmp_path / "web"), str(tmp_path / "out")
    summary = chain(url, out, annotators=operators, carried={"more": "more"}, routes=routes)
    assert summary.status is Status.DONE, summary.messages
    folder = next(one.folder for one in summary.stages if one.name == "corpus")
    rows = pq.read_table(tmp_path / "out" / folder).to_pylist()
    assert {row["text"]: row["more"].strip('[]"') for row in rows} == {"one": "v0", "three": "v2"}


def test_json_nested_deeper_than_it_can_be_written_costs_that_value_alone(tmp_path: Path) -> None:
    deep = b"[" * 500 + b"]" * 500
    line = b'{"text": "x", "id": ' + deep + b', "url": ' + deep + b"}\n"
    (tmp_path / "a.jsonl").write_bytes(line + jsonl({"text": "y"}))
    found = rows(tmp_path)
    assert [(row["text"], row["url"], row["problem"]) for row in found] == [("x", None, None), ("y", None, None)]
    assert len(found[0]["id"]) == 32


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_byte_order_mark_costs_no_row(tmp_path: Path, name: str) -> None:
    data = b"\xef\xbb\xbf" + jsonl({"text": "one"}, {"text": "two"})
    (tmp_path / name).write_bytes(packed(name.removeprefix("a.jsonl"), data))
    assert [(row["text"], row["problem"]) for row in rows(tmp_path)] == [("one", None), ("two", None)]


def test_a_changed_byte_in_an_uncompressed_page_is_seen_by_its_checksum(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(documents(20), file, compression="none", use_dictionary=False, write_page_checksum=True)
    good = file.read_bytes()
    assert good.count(b"Document 5 tells") == 1  # in its page, and not in what headers say of the least and the largest
    file.write_bytes(good.replace(b"Document 5 tells", b"Document 5 sells"))
    with pytest.raises(ShardError, match=r"a.parquet: cannot be read \(.*CRC"):
        rows(tmp_path)


def test_a_footer_whose_names_are_no_utf8_is_one_line(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", text=["x"], qqqq=["y"])
    file.write_bytes(file.read_bytes().replace(b"qqqq", b"\xff\xfe\xfd\xfc"))
    dataset = open_source(str(tmp_path), SourceColumns())
    with pytest.raises(StoreError, match="a.parquet: not a readable Parquet file .*; mend it or move it away"):
        check_columns(dataset, dataset.shards[0])
    with pytest.raises(ShardError, match="a.parquet: cannot be read"):
        read_source(dataset, dataset.shards[0], [])


@pytest.mark.parametrize("name", ["two\nlines.parquet", "bell\a.parquet", "\udcff.parquet", "q?versionId=3.parquet"])
def test_a_name_that_no_report_could_show_is_refused(tmp_path: Path, name: str) -> None:
    parquet(tmp_path / "a.parquet", text=["x"])
    (tmp_path / "a.parquet").rename(tmp_path / name)
    with pytest.raises(StoreError, match="which no shard's name may; rename or move it") as caught:
        open_source(str(tmp_path), SourceColumns())
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("path", ["../up.parquet", "x/../../up.parquet", "x/./y.parquet"])
def test_a_key_that_steps_elsewhere_is_refused(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Amazon's S3 allows such keys, SeaweedFS and file systems do not, so the listing is a fake here."""
    monkeypatch.setattr(Store, "entries", lambda self, prefix="": [Entry(path, 1, "1")])
    with pytest.raises(StoreError, match=f"'{path}' holds '.*', which no shard's name may"):
        open_source(str(tmp_path), SourceColumns())


def test_names_that_begin_with_two_dots_are_hidden_as_any_dot(tmp_path: Path) -> None:
    parquet(tmp_path / "..a.parquet", text=["x"])
    parquet(tmp_path / "b..parquet", text=["x"])
    assert names(tmp_path) == ["b..parquet"]


def test_a_shard_that_is_gone_since_the_listing_says_so(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", text=["x"])
    dataset = open_source(str(tmp_path), SourceColumns())
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(StoreError, match=r"a.parquet: is gone since the input was listed; run again"):
        read_source(dataset, dataset.shards[0], [])
