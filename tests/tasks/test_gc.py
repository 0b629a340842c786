"""Garbage collection on a local folder and on S3: what a kept version needs stays, everything else of winnow's goes."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks.dataset import HIDDEN
from tasks.garbage import sweep
from tasks.garbage.find import Kind, find_garbage
from tasks.retry import retry_of, run_to_retry
from tasks.store import Store, StoreError
from tests.upkept import KEEP, STRICT, Place, check, collect, paths, put, sentence, stage_of, write_shard

CANARY = "CANARY7319"
S3_LATER = pytest.param("s3", marks=pytest.mark.slow)
FOLDER_FIRST = pytest.mark.parametrize("root", ["folder", S3_LATER], indirect=True)


@pytest.fixture
def place(tmp_path: Path, root: str) -> Place:
    place = Place(tmp_path, root)
    for shard in range(3):
        write_shard(place, shard)
    return place


def everything(store: Store) -> dict[str, str]:
    """All bytes as text; those of Parquet with every column decompressed."""
    found = {}
    for entry in store.entries():
        raw = store.read(entry.path)
        if entry.path.endswith(".parquet"):
            raw += repr(pq.read_table(io.BytesIO(raw)).to_pylist()).encode()
        found[entry.path] = raw.decode("utf-8", "replace")
    return found


def holding(store: Store, word: str) -> list[str]:
    """Whatever holds the word, as it was written or as the fake model answers it."""
    return sorted(path for path, text in everything(store).items() if word in text or word[::-1] in text)


def test_a_taken_down_document_leaves_no_trace(place: Place) -> None:
    texts = [sentence(900 + row) for row in range(4)]
    gone = [sentence(904 + row, CANARY) for row in range(6)]
    place.write("part-0", [*texts, *gone, sentence(910, f"POISON {CANARY}"), sentence(911, f"FAIL {CANARY}")])
    place.curate()
    place.write("part-0", texts)
    place.calls()
    place.curate()
    assert place.calls()[1] == {}, "texts that stayed were generated again"
    areas = {path.removeprefix(f"{HIDDEN}/").split("/")[0] for path in holding(place.store, CANARY)}
    assert areas >= {"reverse", "corpus", "corpus-scatter-real", "quarantine", "ledger", "reports", "runs"}, areas
    collect(place)
    assert holding(place.store, CANARY) == []
    place.calls()
    check(place)
    # another decision would ask for the same texts again: they were paid for, and are still there
    place.curate(keep=f"{KEEP} AND tokens > 1")
    assert place.calls()[1] == {}


@FOLDER_FIRST
def test_a_dry_run_says_what_and_why_and_touches_nothing(place: Place) -> None:
    place.curate()
    place.curate(keep=STRICT)
    write_shard(place, 0, rows=4)
    place.curate(keep=STRICT)
    before = paths(place.store)
    found = find_garbage(place.store, 1, time.time())
    assert paths(place.store) == before
    reasons = {(item.place.split("/")[0], item.kind, item.reason) for item in found.items if item.kind is Kind.SHARDS}
    assert ("tokens", Kind.SHARDS, "of earlier inputs") in reasons
    assert ("corpus", Kind.SHARDS, "of no kept version") in reasons
    assert ("route", Kind.SHARDS, "of no kept version") in reasons
    assert found.total == sum(item.bytes for item in found.items) > 0
    assert len(found.items) == len({item.path for item in found.items}) == len(before) - found.files
    assert [item.path for item in find_garbage(place.store, 3, time.time()).items] == []
    two = find_garbage(place.store, 2, time.time())
    assert 0 < len(two.items) < len(found.items) and len(two.kept) == 2


@FOLDER_FIRST
def test_what_is_not_winnows_is_named_and_left(place: Place) -> None:
    first = place.curate()
    folder = stage_of(first, "route").folder
    foreign = [f"{folder}/notes.txt", f"{folder}/mine.parquet", "mine/deadbeef0123/mine.parquet"]
    data = place.store.read(place.store.entries("mood")[0].path)
    own = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(data)).replace_schema_metadata(None), own)
    for path, content in zip(foreign, (b"mine", own.getvalue(), b"no Parquet"), strict=True):
        put(place.store, path, content)
    place.curate(keep=STRICT)
    found = collect(place)
    assert found.foreign == sorted(foreign[:2])
    assert set(foreign) <= paths(place.store)
    assert not [path for path in paths(place.store) if path.startswith(folder) and path not in foreign]


@FOLDER_FIRST
def test_a_ledger_of_another_model_is_kept_unless_asked_for(place: Place) -> None:
    place.curate()
    place.use_model("other", b"other weights")
    place.curate()
    found = collect(place)
    assert not [item for item in found.items if item.kind is Kind.LEDGER]
    assert sum(item.tokens for item in found.ledgers) > 100
    place.use_model("model", b"weights")
    place.calls()
    place.curate()
    assert place.calls()[1] == {}, "what was kept was generated again"
    found = collect(place, ledgers=True)
    gone = [item for item in found.items if item.kind is Kind.LEDGER]
    assert gone and not found.ledgers
    assert len({path.split("/")[2] for path in paths(place.store) if path.startswith(f"{HIDDEN}/ledger")}) == 1
    check(place)


def test_leftovers_go_once_they_are_old(place: Place) -> None:
    place.curate()
    for name in ("tmp/0123abcd", "probe/0123abcd"):
        put(place.store, f"{HIDDEN}/{name}", b"half")
    assert find_garbage(place.store, 1, time.time()).items == []
    later = time.time() + 7 * 3600
    if not place.store.local:
        bucket, key = place.store.absolute("tokens/0123456789ab/y.parquet").split("/", 1)
        started = place.store.fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
        place.store.fs.call_s3(
            "upload_part", Bucket=bucket, Key=key, UploadId=started["UploadId"], PartNumber=1, Body=b"x" * 1000
        )
        # somebody else's, below the same root
        place.store.fs.call_s3("create_multipart_upload", Bucket=bucket, Key=f"{key.split('/')[0]}/data/huge.bin")
        assert find_garbage(place.store, 1, time.time()).items == []
    found = find_garbage(place.store, 1, later)
    uploads = [item for item in found.items if item.upload]
    assert [(one.path, one.bytes) for one in uploads] == (
        [] if place.store.local else [("tokens/0123456789ab/y.parquet", 1000)]
    )
    assert sorted(item.place for item in found.items if not item.upload) == ["probe", "tmp"]
    sweep.sweep(place.store, found)
    assert find_garbage(place.store, 1, later).items == []
    check(place)


@FOLDER_FIRST
def test_after_a_retry_both_generations_are_told_apart(place: Place) -> None:
    place.curate()
    place.cures("POISON")
    last = place.curate(retry=retry_of(run_to_retry(place.store)))
    found = collect(place)
    assert {item.place.split("/")[0] for item in found.items if item.kind is Kind.SHARDS} == {
        *(
            "corpus",
            "corpus-resolve-real",
            "corpus-resolve-synthetic",
            "corpus-scatter-real",
            "corpus-scatter-synthetic",
        )
    }, "a retry left shards of its stages behind"
    check(place)
    assert len(place.rows(last.stages[-1].folder)) == 15 * 3


def test_without_a_finished_version_only_leftovers_are_garbage(place: Place) -> None:
    with pytest.raises(StoreError, match="holds no winnow run"):
        find_garbage(place.store, 1, time.time())
    place.curate(build=False)
    found = find_garbage(place.store, 1, time.time() + 7 * 3600)
    assert found.items == [] and "no corpus is finished" in found.notes[0]


@FOLDER_FIRST
def test_what_a_dropped_manifest_knows_of_a_kept_shard_stays_known(place: Place) -> None:
    place.curate()
    write_shard(place, 3)
    os.utime(place.web / "part-0.parquet", (1, 1))
    place.curate()  # its manifest alone knows the shard under its new time stamp
    (place.web / "part-3.parquet").unlink()
    place.curate()
    assert [item for item in collect(place).items if item.path.startswith(f"{HIDDEN}/manifests/mood")]
    assert "shards adopted" not in stage_of(place.curate(), "mood").notes, "a shard was read again"
