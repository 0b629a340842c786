"""A finished stage is found finished: at the cost of its manifest and one listing, however many nights made it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks import stages
from tasks.dataset import HIDDEN, Folder
from tasks.records import read_manifest
from tasks.source import SourceColumns, open_source
from tasks.stage import Execution, Executor, StageResult, run_stage
from tasks.store import Entry, Store
from tasks.summary import Status
from tests.toys import Length, documents

LOCAL = Execution(Executor.LOCAL, workers=2)


def write_shards(web: str, count: int, tmp_path: Path, start: int = 0) -> None:
    """Small and equal but for their name: what a resume costs does not depend on what is in them."""
    store = Store(web)
    file = tmp_path / "shard.parquet"
    pq.write_table(documents(2), file)
    data = file.read_bytes()
    if store.local:
        Path(store.url).mkdir(parents=True, exist_ok=True)
    places = {store.absolute(f"part-{number:05}.parquet"): data for number in range(start, start + count)}
    store.fs.pipe(places)


def curate(web: str, output: Store) -> StageResult:
    source = open_source(web, SourceColumns())
    return run_stage(stages.annotate("toy", Length(), [source], output), output, LOCAL)


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratio(web: str, output: Store, folder: Folder, version: str, shards: int) -> float:
    """Time of a resume by that of listing the input once and reading the manifest once: the best of turns of each."""

    def once() -> None:
        assert len(Store(web).entries()) == shards
        manifest = read_manifest(Store(output.url), folder, version)
        assert manifest is not None and len(manifest.records) == shards

    def resume() -> None:
        summary = curate(web, Store(output.url)).summary
        assert (summary.shards_before, summary.shards_made, summary.dataset_version) == (shards, 0, version)

    pairs = [(seconds(resume), seconds(once)) for _ in range(7)]
    print(f"{shards} shards: resume {[f'{a:.3f}/{b:.3f} s = {a / b:.2f}' for a, b in pairs]}")
    return min(a for a, _ in pairs) / min(b for _, b in pairs)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_finished_shards_cost_less_than_twice_their_listing_and_manifest(
    tmp_path: Path, root: str
) -> None:
    web, output = f"{root}/web", Store(f"{root}/out")
    write_shards(web, 10_000, tmp_path)
    result = curate(web, output)
    assert result.summary.status is Status.DONE and result.summary.shards_made == 10_000
    folder = Folder("toy", result.summary.fingerprint)
    assert ratio(web, output, folder, result.summary.dataset_version, 10_000) < 2


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of stores: listings, by their prefix, and what is read."""
    asked: list[str] = []
    entries, read = Store.entries, Store.read

    def listed(self: Store, prefix: str = "") -> list[Entry]:
        asked.append(f"list {prefix}")
        return entries(self, prefix)

    def fetched(self: Store, path: str) -> bytes:
        asked.append(f"read {path}")
        return read(self, path)

    monkeypatch.setattr(Store, "entries", listed)
    monkeypatch.setattr(Store, "read", fetched)
    return asked


def test_a_finished_stage_is_one_listing_of_each_place_and_one_manifest(
    tmp_path: Path, root: str, asked: list[str]
) -> None:
    web, output = f"{root}/web", Store(f"{root}/out")
    write_shards(web, 3, tmp_path)
    made = curate(web, output).summary
    place = f"toy/{made.fingerprint}"
    asked.clear()
    assert curate(web, output).summary.shards_made == 0
    assert asked == [
        *("list ", f"list {place}", f"list {HIDDEN}/records/{place}", f"list {HIDDEN}/manifests/{place}"),
        f"read {HIDDEN}/manifests/{place}/{made.dataset_version}.json",
    ]


def test_the_manifests_of_earlier_nights_are_read_only_where_they_can_tell_something(
    tmp_path: Path, asked: list[str]
) -> None:
    web, output = tmp_path / "web", Store(str(tmp_path / "out"))
    for night in range(4):
        write_shards(str(web), 2, tmp_path, start=2 * night)
        assert curate(str(web), output).summary.shards_made == 2
        time.sleep(0.02)  # the store's clock tells which manifest is the newest

    def manifests_read() -> int:
        asked.clear()
        summary = curate(str(web), output).summary
        assert summary.status is Status.DONE
        return sum(one.startswith(f"read {HIDDEN}/manifests") for one in asked)

    assert manifests_read() == 1
    write_shards(str(web), 1, tmp_path, start=8)
    assert manifests_read() == 1, "no older record can know of a shard that is new"
    time.sleep(0.02)
    # an edited shard that comes back as it was: only an older manifest knows it
    first = web / "part-00000.parquet"
    kept = tmp_path / "kept.parquet"
    shutil.move(first, kept)
    pq.write_table(documents(3), first)
    assert manifests_read() == 1
    time.sleep(0.02)
    shutil.move(kept, first)
    asked.clear()
    summary = curate(str(web), output).summary
    assert summary.shards_made == 0 and summary.shards_before == 9, "it is found, and not made or adopted again"
    assert summary.notes == {}
