"""Both sides of ``stage`` and ``two-workers``: a bare loop over shards, and the same operator as a stage of winnow."""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from shards import files

from operators.base import Resources
from operators.safety.harm_score import HarmScore
from tasks import stages
from tasks.models import resolve
from tasks.source import SourceColumns, open_source
from tasks.stage import Execution, Executor, run_stage
from tasks.store import Store
from tasks.workers import Pool


def bare(shards: list[Path], output: Path, start: Path | None) -> dict[str, Any]:
    """Read, score, write: what one would write by hand, with the columns that the stage writes."""
    operator = HarmScore()
    operator.setup({name: resolve(reference).path for name, reference in operator.models().items()})
    output.mkdir(parents=True, exist_ok=True)
    if start is not None:  # two of these begin at once
        start.with_name(f"{start.name}-{output.name}").touch()
        while not start.exists():
            time.sleep(0.005)
    ready, rows = time.monotonic(), 0
    for shard in shards:
        table = pq.read_table(shard, columns=["id", "text"])
        size = operator.batch_size
        parts = [operator(table.slice(at, size)) for at in range(0, table.num_rows, size)]
        scored = pa.concat_tables(parts)
        scored = scored.add_column(0, "id", table.column("id"))
        scored = scored.append_column("status", pa.array(["ok"] * table.num_rows, pa.string()))
        scored = scored.append_column("reason", pa.nulls(table.num_rows, pa.string()))
        pq.write_table(scored, output / shard.name, compression="zstd", row_group_size=16384)
        rows += table.num_rows
    return {"ready": ready, "done": time.monotonic(), "rows": rows}


class _Handle:
    """A worker whose set-up is listened to."""

    def __init__(self, inner: Any, setups: list[Any]) -> None:
        self._inner, self._setups = inner, setups

    def call(self, method: str, *arguments: Any) -> Any:
        future = self._inner.call(method, *arguments)
        if method == "setup":
            self._setups.append(future)
        return future

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Pool:
    """The real pool; notes when each worker's set-up was known to be over."""

    def __init__(self, inner: Any, ready: list[float]) -> None:
        self._inner, self._ready = inner, ready
        self._setups: list[Any] = []

    def start(self, worker: Any) -> _Handle:
        return _Handle(self._inner.start(worker), self._setups)

    def result(self, future: Any) -> Any:
        value = self._inner.result(future)
        if any(future is one for one in self._setups):
            self._ready.append(time.monotonic())
        return value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@dataclass(frozen=True)
class Watched(Execution):
    """``ready``: when each worker was."""

    ready: list[float] = field(default_factory=list)

    def pool(self, resources: Resources) -> Pool:
        return _Pool(Execution.pool(self, resources), self.ready)


def started(executor: Executor) -> Any:
    """Ray, where the stages run on it."""
    if executor is Executor.LOCAL:
        return nullcontext()
    from tasks.ray_cluster import cluster

    return cluster()


def system(source: Path, output: Path, executor: Executor, workers: int) -> dict[str, Any]:
    with started(executor):
        execution = Watched(executor=executor, workers=workers)
        dataset = open_source(str(source), SourceColumns())
        store = Store(str(output))
        result = run_stage(stages.annotate("harm_score", HarmScore(), [dataset], store), store, execution)
        done = time.monotonic()
    summary = result.summary
    if summary.status.value != "done" or not summary.accounts.closed():
        raise SystemExit(f"the stage ended {summary.status.value}: {summary.failures[:1]}")
    return {
        "ready": mean(execution.ready),
        "done": done,
        "rows": summary.accounts.rows_out,
        "setup_seconds": summary.setup_seconds,
        "busy_share": summary.busy_share,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="one side; started by overhead, not by hand")
    parser.add_argument("side", choices=["bare", "local", "ray"])
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--part", default="0/1", help="of the shards, every so manieth")
    parser.add_argument("--start", type=Path, help="file to wait for")
    given = parser.parse_args()
    if given.side == "bare":
        number, parts = map(int, given.part.split("/"))
        told = bare(files(given.source)[number::parts], given.output, given.start)
    else:
        told = system(given.source, given.output, Executor(given.side), given.workers)
    print(json.dumps(told))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
