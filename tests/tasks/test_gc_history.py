"""Garbage collection after any history: what is left is what fresh runs of the kept versions make."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest

from tasks.dataset import HIDDEN
from tasks.garbage.find import find_garbage
from tasks.verify import verify
from tests.upkept import KEEP, STRICT, Place, collect, made, paths, write_shard


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))])
def test_any_history_comes_down_to_its_kept_versions(tmp_path: Path, seed: int) -> None:
    history(Place(tmp_path, str(tmp_path / "root")), seed)


@pytest.mark.slow
def test_any_history_on_s3(tmp_path: Path, s3: str) -> None:
    history(Place(tmp_path, f"{s3}/history-{os.getpid()}"), 99)


def history(place: Place, seed: int) -> None:
    """Random runs, then gc: what is left is what fresh runs of the kept versions make, and ledgers."""
    chance = random.Random(seed)
    for shard in range(3):
        write_shard(place, shard)
    state: tuple[str, str] = (KEEP, "model")
    versions: dict[str, tuple[Path, tuple[str, str]]] = {}
    for step in range(6):
        shard = chance.randrange(5)
        match chance.choice(["edit", "add", "remove", "keep", "model", "again"]):
            case "edit" | "add":
                write_shard(place, shard, rows=chance.randint(2, 6), start=chance.randint(0, 9))
            case "remove" if len(list(place.web.iterdir())) > 1:
                next(iter(sorted(place.web.iterdir()))).unlink()
            case "keep":
                state = (chance.choice([KEEP, STRICT, f"{KEEP} AND tokens > 3"]), state[1])
            case "model":
                state = (state[0], chance.choice(["model", "other"]))
        place.use_model(state[1], state[1].encode())
        run = place.curate(keep=state[0])
        if run.corpus:
            kept = shutil.copytree(place.web, place.folder / f"web-{step}")
            versions.pop(run.corpus, None)
            versions[run.corpus] = (kept, state)
    keep = chance.randint(1, 3)
    collect(place, keep)
    found = verify(place.store)
    assert found.ok, found
    assert find_garbage(place.store, keep, time.time()).items == []
    last = place.curate(keep=state[0])
    assert made(last) == {}, "the flow did work after a collection"
    fresh = Place(place.folder / "fresh", f"{place.root}-fresh")
    for web, (decision, model) in list(versions.values())[-keep:]:
        shutil.rmtree(fresh.web)
        shutil.copytree(web, fresh.web)
        fresh.use_model(model, model.encode())
        fresh.curate(keep=decision)
    assert place.digests() == fresh.digests()
    ledger = f"{HIDDEN}/ledger"
    wanted = {path.rsplit("/", 1)[0] for path in paths(fresh.store) if path.startswith(ledger)}
    held = {path.rsplit("/", 1)[0] for path in paths(place.store) if path.startswith(ledger)}
    assert wanted <= held and {one.rsplit("/", 1)[1] for one in held} <= {one.rsplit("/", 1)[1] for one in wanted}
