"""Create-once commits on a local folder and on a real S3: two writers, lost answers, careless stores, kills."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerContext
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tasks.commit import CommitConflict, Committed, Footer, adopt, commit_table, create, probe, read_footer, remove
from tasks.store import Store, StoreError
from tasks.summary import Accounts
from tests.toys import documents

PATH = "toy/0123456789ab/part-0.parquet"
PART_BYTES = 5 << 20  # the smallest part that S3 takes
WRITERS = 6


def footer(key: str = "k" * 64, rows: int = 10) -> Footer:
    accounts = Accounts(rows_in=rows, outcomes={"ok": rows}, rows_out=rows, outputs={"ok": rows})
    return Footer(stage="toy", fingerprint="0123456789ab", name="part-0.parquet", key=key, accounts=accounts)


def bulk(seed: int = 0) -> pa.Table:
    """About 11 MiB that do not compress: more than two of the smallest parts."""
    return pa.table({"bulk": np.random.default_rng(seed).integers(0, 2**62, 1_450_000)})


@pytest.fixture(scope="module")
def forks() -> ForkServerContext:
    """Processes that start in milliseconds: the server has imported what they need and holds no thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tasks.stages", "tests.toys"])
    return context


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lists the S3 calls that are made. Left to itself, s3fs would here cut files from 10 MiB on into parts."""
    import s3fs

    calls: list[str] = []
    real = s3fs.S3FileSystem._call_s3

    async def noted(self: Any, method: str, *arguments: Any, **kwargs: Any) -> Any:
        calls.append(method)
        return await real(self, method, *arguments, **kwargs)

    monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda size, chunksize=None: chunksize or PART_BYTES)
    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", noted)
    return calls


# -- one writer ----------------------------------------------------------------------------------------------------


def test_a_shard_is_created_with_its_footer(root: str) -> None:
    store = Store(root)
    made = commit_table(store, PATH, documents(10), footer())
    assert (made.path, made.rows, made.adopted) == (PATH, 10, False)
    with store.fetched(PATH) as (local, digest):
        assert digest == made.sha256 and local.stat().st_size == made.bytes
        assert read_footer(local) == footer()
        assert pq.read_table(local).replace_schema_metadata(None).equals(documents(10))
    assert [entry.path for entry in store.entries()] == [PATH], "nothing but the shard may be left"


def test_the_same_shard_again_is_adopted(root: str) -> None:
    store = Store(root)
    made = commit_table(store, PATH, documents(10), footer())
    again = commit_table(store, PATH, documents(10), footer())
    assert again.adopted and again.sha256 == made.sha256 and again.footer == made.footer
    assert adopt(store, PATH, "k" * 64) == again
    assert adopt(store, "toy/other.parquet", "k" * 64) is None


def test_equal_input_gives_equal_bytes(root: str) -> None:
    one = commit_table(Store(f"{root}/1"), PATH, documents(10), footer())
    two = commit_table(Store(f"{root}/2"), PATH, documents(10), footer())
    assert one.sha256 == two.sha256


def test_another_shard_under_the_name_is_a_conflict_and_stays(root: str) -> None:
    store = Store(root)
    made = commit_table(store, PATH, documents(10), footer())
    with pytest.raises(CommitConflict, match=r"part-0.parquet: holds something else \(shard key kkk.*move it away"):
        commit_table(store, PATH, documents(10, 5), footer("x" * 64))
    assert adopt(store, PATH, "k" * 64) is not None
    with store.fetched(PATH) as (_, digest):
        assert digest == made.sha256


def put(store: Store, path: str, data: bytes) -> None:
    target = store.absolute(path)
    store.fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
    store.fs.pipe_file(target, data)


def test_what_is_not_ours_is_said_to_be_so(root: str) -> None:
    store = Store(root)
    put(store, PATH, b"a stranger's notes")
    with pytest.raises(StoreError, match="not a readable Parquet file") as caught:
        commit_table(store, PATH, documents(10), footer())
    assert "\n" not in str(caught.value)
    assert store.read(PATH) == b"a stranger's notes"
    buffer = pa.BufferOutputStream()
    pq.write_table(documents(1).replace_schema_metadata({b"winnow": b'{"format_version": 99, "more": 1}'}), buffer)
    put(store, "newer.parquet", buffer.getvalue().to_pybytes())
    with pytest.raises(StoreError, match="footer is of another winnow") as caught:
        adopt(store, "newer.parquet", "k" * 64)
    assert "\n" not in str(caught.value)


def test_small_objects_are_created_once(root: str) -> None:
    store = Store(root)
    assert create(store, "a/b.json", b"1") is True
    assert create(store, "a/b.json", b"2") is False
    assert store.read("a/b.json") == b"1"
    remove(store, "a/b.json")
    remove(store, "a/b.json")
    assert store.entry("a/b.json") is None


def test_a_large_file_is_one_conditional_put(s3: str, calls: list[str]) -> None:
    """Not all stores decide the condition atomically where an upload in parts is completed."""
    store = Store(f"{s3}/large-{random.randrange(10**9)}")
    table = bulk()
    made = commit_table(store, PATH, table, footer(rows=table.num_rows))
    assert made.bytes > 2 * PART_BYTES
    assert commit_table(store, PATH, table, footer(rows=table.num_rows)).adopted
    with pytest.raises(CommitConflict):
        commit_table(store, PATH, bulk(1), footer("x" * 64, table.num_rows))
    assert calls.count("put_object") == 3 and not [one for one in calls if "multipart" in one]
    with store.fetched(PATH) as (_, digest):
        assert digest == made.sha256


def test_a_shard_above_the_limit_of_one_put_is_refused(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.commit.LARGEST_PUT", 1000)
    store = Store(f"{s3}/larger-{random.randrange(10**9)}")
    with pytest.raises(StoreError, match=r"part-0.parquet would be [\d,]+ bytes, .* smaller shards"):
        commit_table(store, PATH, documents(1000), footer(rows=1000))
    assert store.entries() == []


# -- two writers ---------------------------------------------------------------------------------------------------


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Results, or errors, of ``count`` threads that start together."""
    barrier = threading.Barrier(count)

    def one(number: int) -> Any:
        barrier.wait(30)
        try:
            return work(number)
        except (CommitConflict, StoreError) as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


@pytest.mark.parametrize("attempt", range(3))
def test_of_threads_with_one_shard_one_wins_and_the_others_adopt(root: str, attempt: int) -> None:
    found = at_once(WRITERS, lambda _: commit_table(Store(root), PATH, documents(10), footer()))
    assert all(isinstance(one, Committed) for one in found), found
    assert [one.adopted for one in found].count(False) == 1
    assert len({one.sha256 for one in found}) == 1


def test_of_threads_with_different_shards_one_wins_and_the_others_stop(root: str) -> None:
    keys = [str(number) * 64 for number in range(WRITERS)]
    found = at_once(WRITERS, lambda n: commit_table(Store(root), PATH, documents(10, n), footer(keys[n])))
    (winner,) = [number for number, one in enumerate(found) if isinstance(one, Committed)]
    assert all(isinstance(one, CommitConflict) for number, one in enumerate(found) if number != winner), found
    with Store(root).fetched(PATH) as (local, digest):
        assert digest == found[winner].sha256
        assert pq.read_table(local).column("id").to_pylist() == documents(10, winner).column("id").to_pylist()


def test_of_threads_with_a_large_file_one_wins(s3: str, calls: list[str]) -> None:
    place = f"{s3}/large-{random.randrange(10**9)}"
    table = bulk()
    found = at_once(3, lambda _: commit_table(Store(place), PATH, table, footer(rows=table.num_rows)))
    assert [getattr(one, "adopted", one) for one in found].count(False) == 1, found
    assert [getattr(one, "adopted", one) for one in found].count(True) == 2, found


def _write(root: str, environment: dict[str, str], start: float, answers: Queue[Any]) -> None:
    os.environ.update(environment)
    store = Store(root)
    assert store.entry(PATH) is None  # opens the connection
    time.sleep(max(0.0, start - time.time()))
    answers.put(commit_table(store, PATH, documents(10), footer()))


def aws() -> dict[str, str]:
    """What a process needs to reach the S3 server of this test."""
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def test_of_processes_one_wins_and_the_others_adopt(root: str, forks: ForkServerContext) -> None:
    answers: Queue[Any] = forks.Queue()
    start = time.time() + 3.0
    children = [forks.Process(target=_write, args=(root, aws(), start, answers)) for _ in range(4)]
    for child in children:
        child.start()
    found = [answers.get(timeout=60) for _ in children]
    for child in children:
        child.join(30)
    assert sorted(one.adopted for one in found) == [False, True, True, True]
    assert len({one.sha256 for one in found}) == 1


def test_an_answer_that_is_lost_is_found_in_the_footer(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The put arrives, its answer does not, and the client's own second try is refused by the condition."""
    import s3fs

    store = Store(f"{s3}/lost-{random.randrange(10**9)}")
    real = s3fs.S3FileSystem._call_s3

    async def twice(self: Any, method: str, *arguments: Any, **kwargs: Any) -> Any:
        if method == "put_object":
            await real(self, method, *arguments, **kwargs)
        return await real(self, method, *arguments, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", twice)
    assert commit_table(store, PATH, documents(10), footer()).adopted


def test_a_link_whose_answer_is_lost_is_found_in_the_footer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS a link may be made, its answer lost, and the client's second try told that the name is taken."""
    real = os.link

    def twice(file: Path, final: Path) -> None:
        real(file, final)
        real(file, final)

    monkeypatch.setattr(os, "link", twice)
    assert commit_table(Store(str(tmp_path)), PATH, documents(10), footer()).adopted


# -- stores that ignore the condition ------------------------------------------------------------------------------


class Careless(MemoryFileSystem):
    """A store whose puts overwrite whatever the caller asks for, as WebDAV and SFTP do."""

    protocol: ClassVar[str] = "careless"  # type: ignore[misc]
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]  # type: ignore[misc]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(str(path).replace("careless://", "memory://")))

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        assert kwargs.get("mode", "overwrite") == "overwrite", "it knows no other"
        self.pipe_file(rpath, Path(lpath).read_bytes())


@pytest.fixture
def careless() -> Iterator[Store]:
    fsspec.register_implementation("careless", Careless, clobber=True)
    yield Store("careless://lake/out")
    Careless.store.clear()


def test_a_store_without_conditional_writes_is_refused_unless_there_is_one_writer(careless: Store) -> None:
    with pytest.raises(StoreError, match="ignores conditional writes.*--single-writer"):
        probe(careless, single_writer=False)
    probe(careless, single_writer=True)
    assert careless.entries() == [], "the probe is removed"
    assert not commit_table(careless, PATH, documents(10), footer()).adopted


def test_an_s3_that_ignores_the_condition_is_refused(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    real = s3fs.S3FileSystem._call_s3

    async def careless(self: Any, method: str, *arguments: Any, IfNoneMatch: str = "", **kwargs: Any) -> Any:
        return await real(self, method, *arguments, **kwargs)

    store = Store(f"{s3}/careless-{random.randrange(10**9)}")
    probe(store, single_writer=False)
    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", careless)
    with pytest.raises(StoreError, match="ignores conditional writes"):
        probe(store, single_writer=False)
    probe(store, single_writer=True)


def test_a_good_store_passes_the_probe_and_is_left_clean(root: str) -> None:
    store = Store(root)
    probe(store, single_writer=False)
    assert store.entries() == []
