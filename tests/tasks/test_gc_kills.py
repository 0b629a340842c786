"""Garbage collection beside runs, after killed ones, and killed itself, on a local folder and on S3."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tasks import presence
from tasks.dataset import HIDDEN
from tasks.garbage import sweep
from tasks.garbage.find import find_garbage
from tasks.presence import Note
from tasks.store import Store, StoreError
from tasks.verify import verify
from tests.tasks.test_commit import aws
from tests.upkept import STRICT, Place, collect, made, paths, put, sentence, write_shard

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.upkept"])
S3_LATER = pytest.param("s3", marks=pytest.mark.slow)
FOLDER_FIRST = pytest.mark.parametrize("root", ["folder", S3_LATER], indirect=True)


@pytest.fixture
def place(tmp_path: Path, root: str) -> Place:
    place = Place(tmp_path, root)
    for shard in range(3):
        write_shard(place, shard)
    return place


@FOLDER_FIRST
def test_nothing_is_deleted_beside_a_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.curate()
    place.curate(keep=STRICT)
    before = paths(place.store)
    presence.come(place.store, "20300101T000000-000000")  # of this very process
    found = find_garbage(place.store, 1, time.time())
    assert [note.run_id for note in found.at_work] == ["20300101T000000-000000"]
    with pytest.raises(StoreError, match=r"run 20300101T000000-000000 is at work since .*; wait for it to end"):
        sweep.sweep(place.store, found)
    assert before <= paths(place.store)
    presence.leave(place.store, "20300101T000000-000000")
    # of a process that is gone, on this machine
    child = FORKS.Process(target=_come, args=(place.root, aws()))
    child.start()
    child.join(30)
    assert child.exitcode == 0 and not find_garbage(place.store, 1, time.time()).at_work
    # of a machine that nobody here can ask: as long as something was written lately
    note = Note(run_id="elsewhere", began="", machine="other-1", process="1-1")
    put(place.store, f"{presence.RUNNING}/elsewhere.json", note.model_dump_json().encode())
    assert [one.run_id for one in find_garbage(place.store, 1, time.time()).at_work] == ["elsewhere"]
    later = find_garbage(place.store, 1, time.time() + 7 * 3600)
    assert not later.at_work and {item.path for item in later.items} > {f"{presence.RUNNING}/elsewhere.json"}


@FOLDER_FIRST
def test_a_run_says_that_it_is_at_work(place: Place) -> None:
    place.curate()
    place.curate(keep=STRICT)
    place.write("part-9", [sentence(row) for row in range(100)])
    child = FORKS.Process(target=_curate, args=(str(place.folder), place.root, aws()))
    child.start()
    deadline = time.monotonic() + 60
    while not place.store.entries(presence.RUNNING):
        assert child.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    found = find_garbage(place.store, 1, time.time())
    assert len(found.at_work) == 1
    with pytest.raises(StoreError, match=found.at_work[0].run_id):
        sweep.sweep(place.store, found)
    child.kill()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    found = collect(place)
    assert not found.at_work and [item.reason for item in found.items if item.place == "running"] == [
        "note of a run that was killed"
    ]
    assert not place.store.entries(presence.RUNNING)
    place.curate()
    assert not place.store.entries(presence.RUNNING), "a run that ended is still noted"


def _curate(folder: str, root: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    place = Place(Path(folder), root)
    place.use_model("model", b"weights")
    place.curate(delay=0.2)


def _come(root: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    presence.come(Store(root), "killed")


@FOLDER_FIRST
def test_work_that_is_newer_than_the_last_version_is_kept(place: Place) -> None:
    """Of a run that did not come to a corpus, and of one that was killed."""
    place.curate()
    time.sleep(0 if place.store.local else 1.1)  # S3 counts whole seconds
    write_shard(place, 7)
    place.curate(keep=STRICT, build=False)
    before = paths(place.store)
    found = collect(place)
    assert found.items == [] and paths(place.store) == before
    write_shard(place, 8)
    child = FORKS.Process(target=_curate, args=(str(place.folder), place.root, aws()))
    child.start()
    deadline = time.monotonic() + 60
    while not {path for path in paths(place.store) - before if path.startswith("route/")}:
        assert child.is_alive() and time.monotonic() < deadline
    child.kill()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    before = {path for path in paths(place.store) if not path.startswith((presence.RUNNING, f"{HIDDEN}/tmp"))}
    assert {item.place for item in collect(place).items} == {"running"}
    assert before <= paths(place.store)


def _sweep(root: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    sweep.DELETERS = 1
    real = sweep._delete

    def slow(*arguments: Any) -> None:
        time.sleep(0.01)
        real(*arguments)

    sweep._delete = slow
    store = Store(root)
    sweep.sweep(store, find_garbage(store, 1, time.time()))


@FOLDER_FIRST
def test_kills_at_any_moment_leave_a_valid_root(place: Place) -> None:
    place.curate()
    for rows in (4, 3, 6):
        write_shard(place, 1, rows=rows)
        place.curate(keep=STRICT)
    calm = {item.path for item in find_garbage(place.store, 1, time.time()).items}
    left = paths(place.store) - calm
    chance, kills = random.Random(3), 0
    while kills < 5:
        standing = len(paths(place.store))
        child = FORKS.Process(target=_sweep, args=(place.root, aws()))
        child.start()
        goal, deadline = standing - chance.randint(1, 12), time.monotonic() + 60
        while len(paths(place.store)) > goal and child.is_alive():
            assert time.monotonic() < deadline
        child.kill()
        child.join(30)
        assert child.exitcode == -signal.SIGKILL, "it was through before it was killed"
        kills += 1
        problems = [line for stage in verify(place.store).stages for line in stage.problems]
        assert not [line for line in problems if "has no record" not in line], problems
    assert left < paths(place.store)
    collect(place)
    assert paths(place.store) == left
    found = verify(place.store)
    assert found.ok, found
    assert made(place.curate(keep=STRICT)) == {}
    if place.store.local:
        empty = {os.path.basename(folder) for folder, inner, files in os.walk(place.root) if not inner and not files}
        assert empty <= {"tmp", "running"}, "folders are left in which nothing lies"
