"""Foreign datasets: what is listed, what is read, and that every row is accounted for whatever stands in it."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tasks.source import ShardError, SourceColumns, check_columns, limited, open_source, read_source
from tasks.store import Store, StoreError
from tests.toys import documents

PLAIN = SourceColumns()


def rows(folder: Path | str, columns: SourceColumns = PLAIN, also: Sequence[str] = ()) -> list[dict[str, Any]]:
    """All rows of all shards, in order."""
    dataset = open_source(str(folder), columns)
    found = []
    for shard in dataset.shards:
        table, _ = read_source(dataset, shard, ["url", "date", *also])
        found += table.to_pylist()
    return found


def names(url: Path | str) -> list[str]:
    return [shard.name for shard in open_source(str(url), PLAIN).shards]


def jsonl(*values: Any) -> bytes:
    return b"".join(orjson.dumps(value) + b"\n" for value in values)


def parquet(file: Path, **columns: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)
    return file


def packed(suffix: str, data: bytes) -> bytes:
    return {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix](data)


@pytest.mark.parametrize("ending", ["jsonl", "ndjson"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl_plain_and_compressed(tmp_path: Path, suffix: str, ending: str) -> None:
    table = documents(50)
    (tmp_path / f"a.{ending}{suffix}").write_bytes(packed(suffix, jsonl(*table.to_pylist())))
    found = rows(tmp_path)
    assert [{key: row[key] for key in table.column_names} for row in found] == table.to_pylist()
    assert all(row["problem"] is None and row["raw"] is None for row in found)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_several_members_in_one_file_are_all_read(tmp_path: Path, suffix: str) -> None:
    parts = [packed(suffix, jsonl({"text": f"part {part}"})) for part in range(3)]
    if suffix == ".zst":
        parts.insert(1, bytes.fromhex("502a4d18") + (4).to_bytes(4, "little") + b"skip")  # pzstd writes such frames
    (tmp_path / f"a.jsonl{suffix}").write_bytes(b"".join(parts))
    assert [row["text"] for row in rows(tmp_path)] == ["part 0", "part 1", "part 2"]


def test_parquet(tmp_path: Path) -> None:
    table = documents(50)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    assert [{key: row[key] for key in table.column_names} for row in rows(tmp_path)] == table.to_pylist()


def test_the_digest_is_the_files_own(tmp_path: Path) -> None:
    import hashlib

    file = parquet(tmp_path / "a.parquet", text=["x"])
    dataset = open_source(str(tmp_path), PLAIN)
    assert read_source(dataset, dataset.shards[0], [])[1] == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def tree(tmp_path: Path, root: str) -> str:
    """A tree of shards and of things that are none, on a folder and on S3."""
    store = Store(root)
    local = tmp_path / "tree"
    shards = ["a.parquet", "b.parquet", "c.jsonl", "x/a.parquet", "x/y/b.parquet", "x/y/ä shard, 1.parquet"]
    others = ["README.md", "_SUCCESS", "_temporary/a.parquet", ".hidden/a.parquet", "x/_c.parquet", "d.csv"]
    for name in [*shards, *others]:
        parquet(local / name, text=[name])
    (local / "c.jsonl").write_bytes(jsonl({"text": "c.jsonl"}))
    for file in local.rglob("*"):
        if file.is_file():
            target = store.absolute(file.relative_to(local).as_posix())
            store.fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            store.fs.put_file(str(file), target)
    return root


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", ["a.parquet", "b.parquet", "c.jsonl", "x/a.parquet", "x/y/b.parquet", "x/y/ä shard, 1.parquet"]),
        ("/*.parquet", ["a.parquet", "b.parquet"]),
        ("/**/*.parquet", ["a.parquet", "b.parquet", "x/a.parquet", "x/y/b.parquet", "x/y/ä shard, 1.parquet"]),
        ("/x/**", ["a.parquet", "y/b.parquet", "y/ä shard, 1.parquet"]),
        ("/*/a.parquet", ["x/a.parquet"]),
        ("/[ac].*", ["a.parquet", "c.jsonl"]),
        ("/[!a].parquet", ["b.parquet"]),
        ("/?.jsonl", ["c.jsonl"]),
        ("/a.parquet", ["a.parquet"]),
        ("/x/y/ä shard, 1.parquet", ["ä shard, 1.parquet"]),
    ],
)
def test_a_folder_a_file_and_globs(tree: str, url: str, expected: list[str]) -> None:
    assert names(tree + url) == expected
    dataset = open_source(tree + url, PLAIN)
    for shard in dataset.shards:
        (row,) = read_source(dataset, shard, [])[0].to_pylist()
        assert row["text"].endswith(shard.name)


@pytest.mark.parametrize("url", ["/*.jsonl.gz", "/nowhere", "/nowhere.parquet", "/README.md", "/**/z*"])
def test_nothing_found_is_one_line_with_the_url(tree: str, url: str) -> None:
    with pytest.raises(StoreError, match="check the URL or the glob") as caught:
        open_source(tree + url, PLAIN)
    assert tree + url in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_named_like_a_file_is_a_folder(tmp_path: Path) -> None:
    parquet(tmp_path / "web.parquet" / "part-0.parquet", text=["x"])
    assert names(tmp_path / "web.parquet") == ["part-0.parquet"]


def test_an_unknown_protocol_is_one_line() -> None:
    with pytest.raises(StoreError, match="nothere://x/y: cannot open this kind of URL"):
        open_source("nothere://x/y", PLAIN)


# -- columns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_mapped_and_carried_columns(tmp_path: Path, kind: str) -> None:
    given = {"content": ["one", "two"], "doc": ["a", "b"], "source_url": ["u", None], "stars": [3, 4], "other": [0, 0]}
    if kind == "parquet":
        parquet(tmp_path / "a.parquet", **given)
    else:
        (tmp_path / "a.jsonl").write_bytes(jsonl(*pa.table(given).to_pylist()))
    columns = SourceColumns(mapping=(("text", "content"), ("id", "doc"), ("url", "source_url"), ("rating", "stars")))
    assert columns.carried == ("rating",)
    found = rows(tmp_path, columns, ["rating"])
    assert [(row["text"], row["id"], row["url"], row["date"]) for row in found] == [
        ("one", "a", "u", None),
        ("two", "b", None, None),
    ]
    # Parquet keeps the type of a carried column, JSON lines have none
    assert [row["rating"] for row in found] == ([3, 4] if kind == "parquet" else ["3", "4"])
    assert "other" not in found[0]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_missing_column_names_the_remedy(tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        parquet(tmp_path / "a.parquet", content=["x"], doc=["y"])
    else:
        (tmp_path / "a.jsonl").write_bytes(jsonl({"content": "x", "doc": "y"}))
    dataset = open_source(str(tmp_path), PLAIN)
    with pytest.raises(StoreError, match="no column 'text' for 'text'; it has content, doc.*--columns text=NAME"):
        check_columns(dataset, dataset.shards[0])
    dataset = open_source(str(tmp_path), SourceColumns(mapping=(("text", "content"), ("lang", "language"))))
    with pytest.raises(StoreError, match="no column 'language' for 'lang'.*--columns lang=NAME"):
        check_columns(dataset, dataset.shards[0])


def test_a_shard_without_lines_says_nothing_of_columns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl({"text": "x"})))
    dataset = open_source(str(tmp_path), PLAIN)
    assert [check_columns(dataset, shard) for shard in dataset.shards] == [False, True]


def test_a_file_that_is_no_jsonl_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("id,text\n1,hello\n")
    dataset = open_source(str(tmp_path), PLAIN)
    with pytest.raises(StoreError, match="is it JSON lines?"):
        check_columns(dataset, dataset.shards[0])


def test_two_columns_of_one_name_fail_the_shard(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ShardError, match="2 columns are named 'text'"):
        rows(tmp_path)


# -- ids -----------------------------------------------------------------------------------------------------------


def test_made_ids_are_stable_unique_and_of_source_and_content(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    parquet(one / "a.parquet", text=["same", "other", "same", "same"])
    parquet(one / "b.parquet", text=["same"])
    made = [row["id"] for row in rows(one)]
    assert len(set(made)) == 5 and all(len(one) == 32 for one in made)
    assert [row["id"] for row in rows(one)] == made
    shutil.copytree(one, two)  # elsewhere, the same relative path
    assert [row["id"] for row in rows(two)] == made
    # a row added in front moves no id, and neither does the format of the other columns
    parquet(one / "a.parquet", text=["new", "same", "other", "same", "same"], url=["u"] * 5)
    assert [row["id"] for row in rows(one)][1:] == made
    golden = "5cd1584e1a3223288ddbafcb17c2850c"
    assert made[1] == golden, "made ids changed: every ledger and every corpus that holds them would be lost"


def test_given_ids_stay_and_only_missing_ones_are_made(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        jsonl({"id": "x", "text": "a"}, {"id": None, "text": "b"}, {"id": 17, "text": "c"}, {"text": "d"})
    )
    found = [row["id"] for row in rows(tmp_path)]
    assert found[0] == "x" and found[2] == "17"
    assert len(found[1]) == len(found[3]) == 32 and found[1] != found[3]


def test_numbers_as_ids_become_text(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", id=[7, None, 9], text=["a", "b", "c"])
    found = [row["id"] for row in rows(tmp_path)]
    assert found[0] == "7" and found[2] == "9" and len(found[1]) == 32


# -- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize(("limit", "shards"), [(1, [1]), (10, [10]), (11, [10, 1]), (30, [10] * 3), (99, [10] * 3)])
def test_a_limit_takes_the_first_rows(tmp_path: Path, kind: str, limit: int, shards: list[int]) -> None:
    for shard in range(3):
        table = documents(10, shard * 10)
        if kind == "parquet":
            pq.write_table(table, tmp_path / f"{shard}.parquet")
        else:
            (tmp_path / f"{shard}.jsonl").write_bytes(b"\n" + b"\n\n".join(jsonl(r) for r in table.to_pylist()))
    cut = limited(open_source(str(tmp_path), PLAIN), limit)
    tables = [read_source(cut, shard, [])[0] for shard in cut.shards]
    assert [table.num_rows for table in tables] == shards
    assert pa.concat_tables(tables).column("id").to_pylist() == [f"doc-{n}" for n in range(min(limit, 30))]
    # a cut shard is another dataset, a whole one is not
    assert [shard.head for shard in cut.shards][-1] == (limit % 10 or None if limit < 30 else None)
