"""SIGKILL at any moment of a stage: the next run goes on, and the output is that of an undisturbed one."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks import stages
from tasks.dataset import HIDDEN
from tasks.source import SourceColumns, open_source
from tasks.stage import Execution, Executor, run_stage
from tasks.store import Store
from tasks.summary import Status
from tasks.verify import verify
from tests.tasks.test_commit import aws
from tests.toys import Length, documents

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tasks.stages", "tests.toys"])
SHARDS, KILLS, SEED = 24, 5, 11


def _curate(web: str, root: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    store = Store(root)
    source = open_source(web, SourceColumns())
    run_stage(stages.annotate("toy", Length(), [source], store), store, Execution(Executor.LOCAL, workers=1))


def bytes_of(store: Store) -> dict[str, bytes]:
    return {entry.path: store.read(entry.path) for entry in store.entries("toy")}


def test_kills_at_any_moment_lose_nothing_and_change_no_byte(tmp_path: Path, root: str) -> None:
    web = tmp_path / "web"
    web.mkdir()
    for shard in range(SHARDS):
        table = documents(20, shard * 20)
        texts = table.column("text").to_pylist()
        texts[3] = None  # a quarantine file with every shard: two commits and a record each
        pq.write_table(table.set_column(1, "text", pa.array(texts, pa.string())), web / f"part-{shard:02}.parquet")
    calm, shaken = Store(f"{root}/calm"), Store(f"{root}/shaken")
    _curate(str(web), calm.url, {})

    chance = random.Random(SEED)
    standing = [0]
    for _ in range(KILLS):
        child = FORKS.Process(target=_curate, args=(str(web), shaken.url, aws()))
        child.start()
        goal, deadline = standing[-1] + chance.randint(1, 3), time.monotonic() + 60
        while len(shaken.entries("toy")) < goal:
            assert child.is_alive() and time.monotonic() < deadline, f"ended {child.exitcode}, {standing} of {SHARDS}"
        time.sleep(chance.uniform(0, 0.02))
        child.kill()
        child.join(30)
        assert child.exitcode == -signal.SIGKILL
        standing.append(len(shaken.entries("toy")))
    assert standing == sorted(set(standing)) and standing[-1] < SHARDS, standing

    source = open_source(str(web), SourceColumns())
    result = run_stage(stages.annotate("toy", Length(), [source], shaken), shaken, Execution(Executor.LOCAL, workers=2))
    assert result.summary.status is Status.DONE
    assert result.summary.accounts.outcomes == {"ok": 19 * SHARDS, "quarantined": SHARDS}
    assert result.summary.shards_before + result.summary.shards_made == SHARDS
    assert result.summary.shards_before >= standing[-2], "what was committed is not made again"
    assert bytes_of(shaken) == bytes_of(calm)
    quarantine = f"{HIDDEN}/quarantine"
    assert [entry.path for entry in shaken.entries(quarantine)] == [entry.path for entry in calm.entries(quarantine)]
    (stage,) = verify(shaken).stages
    assert stage.problems == [] and stage.shards == SHARDS
