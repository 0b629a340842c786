"""An S3 server that takes connections and says nothing: every question to it has a limit, writes too."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks import commit
from tasks import store as store_module
from tasks.commit import CommitConflict, Footer, commit_table, create
from tasks.store import Store, StoreError
from tasks.summary import Accounts
from tasks.workers import Policy
from tests.toys import documents

READ_SECONDS, WRITE_SECONDS = 1, 2.0


@pytest.fixture
def store(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A place of its own with short limits."""
    assert create(Store(f"{s3}/{tmp_path.name}"), "there", b"1")  # patiently: a server's first write takes its time
    patient = store_module._S3_OPTIONS["config_kwargs"]
    config = {**patient, "read_timeout": READ_SECONDS, "retries": {**patient["retries"], "max_attempts": 1}}
    monkeypatch.setitem(store_module._S3_OPTIONS, "config_kwargs", config)
    monkeypatch.setattr(commit, "PUT_SECONDS", WRITE_SECONDS)
    one = Store(f"{s3}/{tmp_path.name}")
    assert one.read("there") == b"1"  # the connection is open
    return one


@contextmanager
def standing_still() -> Iterator[None]:
    """The S3 server of this process, stopped: the kernel still takes connections and bytes for it."""
    [server] = [one for one in psutil.Process().children() if one.name() == "weed"]
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def footer(key: str = "a" * 64) -> Footer:
    return Footer(stage="toy", fingerprint="0" * 12, name="part-0.parquet", key=key, accounts=Accounts())


@pytest.mark.parametrize(
    "ask",
    [
        lambda one: create(one, "new", b"1"),
        lambda one: commit_table(one, "shard.parquet", documents(10), footer()),
        lambda one: one.read("there"),
        pytest.param(lambda one: one.entry("there"), marks=pytest.mark.slow),
        pytest.param(lambda one: one.entries(), marks=pytest.mark.slow),
    ],
    ids=["create", "commit", "read", "entry", "entries"],
)
def test_a_server_that_stands_still_is_given_up_in_one_line(store: Store, ask: Callable[[Store], Any]) -> None:
    began = time.monotonic()
    with standing_still(), pytest.raises(StoreError, match="the store does not answer") as told:
        ask(store)
    assert time.monotonic() - began < 20
    assert store.url in str(told.value) and "\n" not in str(told.value) and "AWS_ENDPOINT_URL" in str(told.value)
    assert store.read("there") == b"1", "it answers again"


def test_a_server_that_stands_still_for_less_than_the_limit_is_waited_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "PUT_SECONDS", 60.0)
    with standing_still():
        made: list[Any] = []
        work = threading.Thread(
            target=lambda: made.append(commit_table(store, "shard.parquet", documents(10), footer())), daemon=True
        )
        work.start()
        work.join(1.5)
        assert work.is_alive()
    work.join(60)
    [one] = made
    assert one.rows == 10 and store.entry("shard.parquet") is not None


def test_a_write_that_was_given_up_and_came_through_is_adopted(store: Store) -> None:
    """The server may have taken it all the same: who comes next finds it, by its footer."""
    with standing_still(), pytest.raises(StoreError):
        commit_table(store, "shard.parquet", documents(10), footer())
    again = commit_table(store, "shard.parquet", documents(10), footer())
    assert commit_table(store, "shard.parquet", documents(10), footer()).adopted and again.rows == 10
    with pytest.raises(CommitConflict):
        commit_table(store, "shard.parquet", documents(9), footer("b" * 64))


def test_the_limits_of_one_question_together_are_below_that_of_a_stall() -> None:
    """A read of a silent server ends by itself, with its own words, before the worker would be killed for it."""
    config = store_module._S3_OPTIONS["config_kwargs"]
    tries = store_module._S3_ROUNDS * config["retries"]["max_attempts"]
    assert tries * (config["connect_timeout"] + config["read_timeout"]) < Policy().stall_seconds
    assert Policy().stall_seconds > commit.PUT_SECONDS
