"""Two runs on one output at the same time: each shard is committed once, whoever wins, and both end right."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tasks import commit
from tasks.store import Store
from tasks.verify import verify
from tests.crash_points import Steps, install, what_of
from tests.small_job import LENIENT, STRICT, Job, Output, kept_of, rows_of
from tests.tasks.test_commit import aws

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.crash_points", "s3fs", "tasks.report.render"])
SHARDS, MEET_SECONDS, LIMIT_SECONDS = 4, 2.0, 60


def _run(job: Job, me: str, other: str, meet: str, folder: Path, environment: dict[str, str]) -> None:
    """The job, in a process that waits before each creation of a shard below ``meet`` until the other run is about to
    create it too.
    """
    os.environ.update(environment)
    install(Steps(folder / f"{me}.trace", None))
    create_from = commit._create_from

    def meeting(store: Store, path: str, file: Path) -> bool:
        if what_of(path) == "shard" and path.startswith(meet):
            place = hashlib.sha256(path.encode()).hexdigest()[:16]
            (folder / f"{place}.{me}").touch()
            deadline = time.monotonic() + MEET_SECONDS
            while not (folder / f"{place}.{other}").exists() and time.monotonic() < deadline:
                time.sleep(0.0005)
        return create_from(store, path, file)

    commit._create_from = meeting
    (folder / f"{me}.json").write_text(job.run().model_dump_json())


def at_once(folder: Path, *jobs: Job, meet: str = "") -> tuple[list[dict[str, Any]], Counter[str], Counter[str]]:
    """Summaries of both runs, and how often each shard was created and adopted over both."""
    names = ("one", "two")
    children = [
        FORKS.Process(target=_run, args=(job, me, other, meet, folder, aws()))
        for job, me, other in zip(jobs, names, reversed(names), strict=True)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(LIMIT_SECONDS)
    alive = [child for child in children if child.is_alive()]
    for child in alive:
        child.kill()
    assert not alive and [child.exitcode for child in children] == [0, 0]
    lines = [line.split("\t") for name in names for line in (folder / f"{name}.trace").read_text().splitlines()]
    shards = [line for line in lines if len(line) == 2 and what_of(line[1]) == "shard"]
    created, adopted = (Counter(path for how, path in shards if how == which) for which in ("created", "adopted"))
    return [json.loads((folder / f"{name}.json").read_text()) for name in names], created, adopted


def undisturbed(*jobs: Job) -> Output:
    """What the jobs leave one after the other, in a process of their own."""
    for job in jobs:
        child = FORKS.Process(target=_alone, args=(job, aws()))
        child.start()
        child.join(LIMIT_SECONDS)
        assert child.exitcode == 0
    return Output.at(jobs[0].root)


def _alone(job: Job, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    job.run()


def ids(store: Store, summary: dict[str, Any]) -> list[str]:
    """Ids of the documents in a run's corpus, sorted."""
    folder = summary["stages"][-1]["folder"]
    rows = [row for entry in store.entries(folder) for row in rows_of(store, entry.path)]
    return sorted(row["id"] for row in rows if row["origin"] == "real")


def test_each_shard_is_committed_once_and_both_runs_end_right(tmp_path: Path, root: str) -> None:
    job = Job(tmp_path, f"{root}/shared").write(SHARDS)
    summaries, created, adopted = at_once(tmp_path, job, job)
    assert [one["status"] for one in summaries] == ["done", "done"]
    stages = [{one["name"]: one["dataset_version"] for one in summary["stages"]} for summary in summaries]
    assert stages[0] == stages[1] and all(stages[0].values())
    made = [{one["name"]: one["accounts"] for one in summary["stages"]} for summary in summaries]
    assert made[0] == made[1]
    assert set(created.values()) == {1}, f"created twice: {[path for path, times in created.items() if times > 1]}"
    assert len(adopted) > len(created) / 2, f"they did not meet: {len(adopted)} of {len(created)} shards"
    whole = Output.at(job.root)
    assert {path for path in whole.files if "/resolved/" not in path} == set(created)
    assert ids(Store(job.root), summaries[0]) == sorted(kept_of(SHARDS))
    found = verify(Store(job.root))
    assert found.ok, found
    assert whole.same(undisturbed(Job(tmp_path, f"{root}/calm")))


@pytest.mark.parametrize("root", ["folder", pytest.param("s3", marks=pytest.mark.slow)], indirect=True)
def test_two_thresholds_at_once_do_not_meet_in_what_depends_on_them(tmp_path: Path, root: str) -> None:
    lenient = Job(tmp_path, f"{root}/shared", LENIENT).write(SHARDS)
    strict = Job(tmp_path, f"{root}/shared", STRICT)
    summaries, created, adopted = at_once(tmp_path, lenient, strict, meet="marked/")
    assert [one["status"] for one in summaries] == ["done", "done"]
    assert set(created.values()) == {1} and len(adopted) > SHARDS / 2
    store = Store(lenient.root)
    for summary, most in zip(summaries, (LENIENT, STRICT), strict=True):
        assert ids(store, summary) == sorted(kept_of(SHARDS, most))
    found = verify(store)
    assert found.ok, found
    calm = [Job(tmp_path, f"{root}/calm", most) for most in (LENIENT, STRICT)]
    assert Output.at(lenient.root).same(undisturbed(*calm))
