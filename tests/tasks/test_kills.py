"""SIGKILL at every step of the commit protocol: the next run goes on, and the output is that of an undisturbed one."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import uuid
from collections import Counter
from pathlib import Path

import pytest

from tests.crash_points import AFTER, BEFORE, HALF, SENT, Kind, Point, child, steps_in
from tests.small_job import BLOCK, Job, Output, check_whole, difference, prompts_twice
from tests.tasks.test_commit import aws

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.crash_points", "s3fs", "tasks.report.render"])
LIMIT_SECONDS, KILLS, SEED = 60, 100, 4
LOOK, READ = "look whether it stands", "reading what stands"
PRELUDES = {
    Kind("shard", READ, BEFORE): Kind("record", "temporary file", BEFORE),
    Kind("shard", READ, AFTER): Kind("record", "temporary file", BEFORE),
    Kind("quarantine", LOOK, BEFORE): Kind("shard", "temporary file", BEFORE),
    Kind("quarantine", LOOK, AFTER): Kind("shard", "temporary file", BEFORE),
    Kind("quarantine", READ, BEFORE): Kind("shard", "temporary file", BEFORE),
    Kind("quarantine", READ, AFTER): Kind("shard", "temporary file", BEFORE),
}
"""Steps that only a run after a killed one takes, each with the kill that leads to it."""


class Bench:
    """Jobs over one input, and the output of an undisturbed run of it."""

    def __init__(self, folder: Path, root: str) -> None:
        self.folder, self.root, self.job = folder, root, Job(folder, f"{root}/calm").write()
        trace = folder / "trace"
        assert self.run(self.job, trace, None) == 0
        check_whole(self.job.root)
        self.calm, self.steps = Output.at(self.job.root), Counter(steps_in(trace))
        assert prompts_twice(self.job.prompts) == 0 and len(self.calm.ledger) > 2 * BLOCK
        self.job.prompts.unlink()

    def run(self, job: Job, trace: Path, kill: Point | None) -> int | None:
        process = FORKS.Process(target=child, args=(job, trace, kill, aws()))
        process.start()
        process.join(LIMIT_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
            raise AssertionError(f"it hung, to be killed at {kill}")
        return process.exitcode

    def shaken(self, kills: list[Point]) -> list[Kind]:
        """Runs a job that is killed at each of these points in turn, then once more; checks what is there at the end.

        Gives back where it was killed. A point that a run did not come to ended it well.
        """
        job, trace = Job(self.folder, f"{self.root}/{uuid.uuid4().hex[:8]}"), self.folder / "trace"
        hit: list[Kind] = []
        for kill in kills:
            trace.unlink(missing_ok=True)
            code = self.run(job, trace, kill)
            assert code in (0, -signal.SIGKILL), f"ended with {code}, to be killed at {kill}"
            if code:
                assert steps_in(trace)[-1] == kill.kind or kill.kind.step == "PUT", "killed elsewhere"
                hit.append(kill.kind)
        assert self.run(job, trace, None) == 0, f"the run after {hit} failed"
        check_whole(job.root)
        found = Output.at(job.root)
        assert found.same(self.calm), f"after {hit}: {difference(found, self.calm)}"
        again = prompts_twice(job.prompts)
        assert again <= BLOCK * len(hit), f"{again} answers were generated twice after {hit}"
        assert found.repeated == 0, "what stood in the ledger was generated again"
        job.prompts.unlink(missing_ok=True)
        if "://" not in job.root:
            shutil.rmtree(job.root)
        return hit

    @property
    def kinds(self) -> list[Kind]:
        return sorted({*self.steps, *PRELUDES})

    def chain(self, chance: random.Random, missed: list[Kind], kills: int) -> list[Point]:
        """Points for a chain of so many kills or a few more, at kinds of steps that were ``missed`` so far, if any."""
        kind = chance.choice(missed or self.kinds)
        if kind in PRELUDES:  # in the first stage, whose commits come before all others
            chain = [Point(PRELUDES[kind], 0), Point(kind, 0)]
        else:
            chain = [Point(kind, chance.randrange(self.steps[kind]))]
        while len(chain) < kills:
            more = chance.choice([one for one in missed if one in self.steps] or sorted(self.steps))
            chain.append(Point(more, chance.randrange(min(3, self.steps[more]))))
        return chain


def test_kills_in_the_commit_protocol_lose_nothing_and_change_no_byte(tmp_path: Path, root: str) -> None:
    bench, local = Bench(tmp_path, root), "://" not in root
    created = Kind("shard", "link", AFTER) if local else Kind("shard", "PUT", SENT)
    without_record = [Point(created, 0), Point(Kind("shard", READ, AFTER), 0)]
    hit = bench.shaken([*without_record, Point(Kind("record", "removal", AFTER), 0)])
    half, block = Kind("shard", "temporary file", HALF), Kind("ledger block", "temporary file", BEFORE)
    hit += bench.shaken([Point(half, 1), Point(block, 1)])
    assert len(hit) == 5


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_kills_at_every_kind_of_step(tmp_path: Path, root: str) -> None:
    """On a folder and on S3 a hundred each."""
    bench, hit, chance = Bench(tmp_path, root), Counter[Kind](), random.Random(SEED)
    while hit.total() < KILLS:
        missed = [kind for kind in bench.kinds if not hit[kind]]
        hit.update(bench.shaken(bench.chain(chance, missed, 1 + chance.randrange(3))[: KILLS - hit.total()]))
    print(", ".join(f"{kind.what} {kind.step} {kind.moment}: {hit[kind]}" for kind in bench.kinds))
    assert {*hit} == {*bench.kinds}, f"never killed at {[kind for kind in bench.kinds if not hit[kind]]}"
