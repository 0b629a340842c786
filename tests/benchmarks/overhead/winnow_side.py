"""Winnow's side of ``peers``: annotate and route (the decision is written), then build (the corpus is written)."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow.parquet as pq
from annotating import Watched, started
from filters import Filtered

from operators.route import Route
from operators.safety.tags import HarmTags
from tasks import stages
from tasks.build import Origin
from tasks.dataset import Dataset
from tasks.gather import partition_dataset
from tasks.source import SourceColumns, open_source
from tasks.stage import Executor, Stage, run_stage
from tasks.store import Store

SHARD_ROWS = 20_000
LACKS = ("parent_id", "style", "date", "lang", "harm_score")


def run(source: Path, output: Path, executor: Executor, workers: int, name: str) -> dict[str, Any]:
    """Times of work by stage: from when its workers were ready, in the mean, to the end of the stage."""
    store, taken, begun = Store(str(output)), {}, time.monotonic()
    rows = 0

    def do(stage: Stage) -> Dataset:
        nonlocal rows
        execution = Watched(executor=executor, workers=workers)
        result = run_stage(stage, store, execution)
        taken[stage.folder.stage] = time.monotonic() - mean(execution.ready)
        if result.summary.status.value != "done" or not result.summary.accounts.closed():
            raise SystemExit(f"{stage.folder.stage} ended {result.summary.status.value}: {result.summary.failures[:1]}")
        rows = result.summary.accounts.rows_out
        return result.dataset

    with started(executor):
        dataset = open_source(str(source), SourceColumns())
        filtered = do(stages.annotate("filter", Filtered(name=name), [dataset], store))
        routes = do(stages.annotate("route", Route(routes=(("keep", "broken = 0"),)), [filtered], store))
        decided, total = time.monotonic(), rows
        origin = Origin("real", ("keep",), (), LACKS)
        # cut 1.0 keeps all, so nothing has to be counted first
        scatter = stages.scattering("corpus", origin, [dataset, filtered, routes], HarmTags(), 0, store)
        scattered = do(scatter)
        parts = partition_dataset(store, [scattered], max(1, round(rows / SHARD_ROWS)))
        corpus = do(stages.gathering("corpus", [(scatter.folder, scattered)], parts, store))
        done = time.monotonic()
    kept = [one for shard in corpus.shards for one in pq.read_table(store.absolute(shard.path), columns=["id"])["id"]]
    (output / "kept.json").write_text(json.dumps(sorted(str(one) for one in kept)))
    decide = taken["filter"] + taken["route"]
    return {
        "rows": total,
        "kept": len(kept),
        "stages": {stage: round(seconds, 2) for stage, seconds in taken.items()},
        "decision_seconds": round(decide, 3),
        "work_seconds": round(sum(taken.values()), 3),
        "decision_total_seconds": round(decided - begun, 3),
        "ready": begun,
        "done": done,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="one side; started by overhead, not by hand")
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--filter", default="rule")
    parser.add_argument("--executor", default="ray")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    print(json.dumps(run(given.source, given.output, Executor(given.executor), given.workers, given.filter)))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
