"""Records and manifests on a local folder and on S3: compaction, runs side by side, and files that cannot be read."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from tasks import records as module
from tasks.commit import create
from tasks.dataset import FORMAT_VERSION, Folder, shard_key, version_of
from tasks.records import InputShard, Record, compact, read_records, write_record
from tasks.store import Store, StoreError
from tasks.summary import Accounts

FOLDER = Folder("toy", "0123456789ab")


def record(name: str, token: str = "1") -> Record:
    key = shard_key(FOLDER.fingerprint, name, ["content of " + name])
    accounts = Accounts(rows_in=3, outcomes={"ok": 3}, rows_out=3, outputs={"ok": 3})
    seen = [InputShard(name=name, path=name, token=token, content_id="content of " + name)]
    path = FOLDER.file(name, key)
    return Record(
        stage=FOLDER.stage, fingerprint=FOLDER.fingerprint, name=name, key=key, path=path, sha256="0" * 64, bytes=9,
        rows=3, accounts=accounts, inputs=seen,
    )  # fmt: skip


def records(count: int) -> list[Record]:
    return [record(f"part-{number}.parquet") for number in range(count)]


def wrote(store: Store, many: Sequence[Record]) -> None:
    for one in many:
        write_record(store, FOLDER, one)


def by_name(many: Sequence[Record]) -> list[Record]:
    return sorted(many, key=lambda one: (one.name, one.inputs[0].token))


def loose(store: Store) -> list[str]:
    return [entry.path for entry in store.entries(FOLDER.records)]


def manifests(store: Store) -> list[str]:
    return [entry.path for entry in store.entries(FOLDER.manifests)]


def test_records_come_back_as_they_were_written(root: str) -> None:
    store = Store(root)
    assert read_records(store, FOLDER) == []
    wrote(store, records(5))
    assert by_name(read_records(store, FOLDER)) == records(5)


def test_compaction_leaves_one_manifest_and_loses_nothing(root: str) -> None:
    store = Store(root)
    wrote(store, records(5))
    version = compact(store, FOLDER, records(5))
    assert version == version_of(one.key for one in records(5))
    assert loose(store) == [] and manifests(store) == [f"{FOLDER.manifests}/{version}.json"]
    assert by_name(read_records(store, FOLDER)) == records(5)
    assert compact(store, FOLDER, records(5)) == version and len(manifests(store)) == 1


def test_compaction_is_the_same_bytes_in_any_order(root: str) -> None:
    one, two = Store(f"{root}/1"), Store(f"{root}/2")
    compact(one, FOLDER, records(5))
    compact(two, FOLDER, records(5)[::-1])
    assert [one.read(path) for path in manifests(one)] == [two.read(path) for path in manifests(two)]


def test_a_record_of_no_manifest_stays(root: str) -> None:
    store = Store(root)
    wrote(store, records(5))
    compact(store, FOLDER, records(3))
    assert len(loose(store)) == 2
    assert by_name(read_records(store, FOLDER)) == records(5)


def test_a_second_token_of_a_shard_survives_the_manifest_that_stands_already(root: str) -> None:
    """The shard was touched: same key, so same dataset version, and the manifest cannot be written again."""
    store = Store(root)
    compact(store, FOLDER, records(2))
    touched = record("part-0.parquet", token="2")
    wrote(store, [touched])
    version = compact(store, FOLDER, [touched, records(2)[1]])
    assert by_name(read_records(store, FOLDER)) == by_name([*records(2), touched])
    # every shard of a large dataset may have been touched: none of them is left to be read alone
    assert loose(store) == [] and len(manifests(store)) == 2
    assert compact(store, FOLDER, [touched, records(2)[1]]) == version and len(manifests(store)) == 2


def test_two_runs_that_compact_at_once_lose_nothing(root: str) -> None:
    store = Store(root)
    wrote(store, records(8))
    errors: list[BaseException] = []
    barrier = threading.Barrier(3)

    def run() -> None:
        try:
            barrier.wait(30)
            for _ in range(3):
                compact(Store(root), FOLDER, records(8))
                assert len(read_records(Store(root), FOLDER)) == 8
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert loose(store) == [] and len(manifests(store)) == 1


def test_records_that_another_run_compacts_while_we_read_are_found_in_its_manifest(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(root)
    wrote(store, records(3))
    real = Store.read

    def late(self: Store, path: str) -> bytes:
        if path.startswith(FOLDER.records):
            monkeypatch.setattr(Store, "read", real)
            compact(Store(root), FOLDER, records(3))
        return real(self, path)

    monkeypatch.setattr(Store, "read", late)
    monkeypatch.setattr(module, "READERS", 1)
    assert by_name(read_records(store, FOLDER)) == records(3)
    assert loose(store) == []


def test_a_listing_bears_with_files_that_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    wrote(store, records(3))
    gone = store.absolute(loose(store)[0])
    real = os.scandir

    class Late(list[Any]):
        """A listing that was made before one of its files went."""

        def __enter__(self) -> Late:
            os.remove(gone)
            return self

        def __exit__(self, *error: object) -> None:
            """Nothing to close."""

    monkeypatch.setattr("tasks.store.os.scandir", lambda folder: Late(real(folder)))
    left = store.entries(FOLDER.records)
    monkeypatch.undo()
    assert len(left) == 2 and [entry.path for entry in left] == loose(store)


def test_what_may_not_be_listed_is_an_error_and_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that may not be read would otherwise be a part of the input that nobody ever misses."""
    store = Store(str(tmp_path))
    wrote(store, records(3))
    real = os.scandir

    def closed(folder: str) -> Any:
        if folder.endswith(FOLDER.fingerprint):
            raise PermissionError(13, "Permission denied", folder)
        return real(folder)

    monkeypatch.setattr("tasks.store.os.scandir", closed)  # root may read everything, so a mode would prove nothing
    with pytest.raises(StoreError, match="access refused .*Permission denied"):
        store.entries()


def test_links_are_followed_to_files_and_pipes_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dead").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert [(one.path, one.size) for one in Store(str(tmp_path)).entries()] == [("file", 3), ("link", 3)]
    assert Store(str(tmp_path / "file")).entries() == []


WRONG = {
    "broken": b"{broken",
    "empty": b"",
    "binary": b"\xff\xfe\x00",
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "other": b'{"hello": 1}',
    "half": orjson.dumps({"format_version": FORMAT_VERSION, "stage": "toy"}),
    "extra": orjson.dumps({**record("a.parquet").model_dump(), "more": 1}),
    "older": orjson.dumps({**record("a.parquet").model_dump(), "format_version": 0}),
}


@pytest.mark.parametrize("raw", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("place", [FOLDER.records, FOLDER.manifests])
def test_an_unreadable_record_is_one_line_with_the_remedy(tmp_path: Any, raw: bytes, place: str) -> None:
    store = Store(str(tmp_path))
    create(store, f"{place}/bad.json", raw)
    with pytest.raises(
        StoreError, match=r"bad.json: not a readable (record|manifest) .*remove it, and the run"
    ) as error:
        read_records(store, FOLDER)
    assert "\n" not in str(error.value) and store.url in str(error.value)


@pytest.mark.parametrize("place", [FOLDER.records, FOLDER.manifests])
def test_a_newer_format_is_refused_in_one_line(root: str, place: str) -> None:
    store = Store(root)
    held = {**record("a.parquet").model_dump(), "format_version": FORMAT_VERSION + 1, "invented": True}
    create(store, f"{place}/new.json", orjson.dumps(held))
    line = f"record format {FORMAT_VERSION + 1}, this winnow reads {FORMAT_VERSION}; use a newer winnow"
    with pytest.raises(StoreError, match=line) as error:
        read_records(store, FOLDER)
    assert "\n" not in str(error.value) and f"{store.url}/{place}/new.json" in str(error.value)


def test_an_unreadable_record_removed_is_made_again(tmp_path: Any) -> None:
    """What the message tells the reader to do works: tests/tasks/test_stage.py shows the adoption that follows."""
    store = Store(str(tmp_path))
    wrote(store, records(2))
    bad = loose(store)[0]
    store.fs.pipe_file(store.absolute(bad), b"{")
    with pytest.raises(StoreError, match="remove it"):
        read_records(store, FOLDER)
    store.fs.rm_file(store.absolute(bad))
    assert len(read_records(store, FOLDER)) == 1
