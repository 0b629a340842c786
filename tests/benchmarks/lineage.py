"""What ``winnow lineage`` and ``winnow diff`` read and how long they take, by rows. Not a test:

    OMP_NUM_THREADS=1 taskset -c 1 python tests/benchmarks/lineage.py --rows 10000000 --folder EMPTY_FOLDER

Writes an output root as a run leaves it (one annotation, a corpus of half of the rows, records and manifests; ids are
random UUIDs, so that no row group is left out by its statistics), traces ids in it, and prints a Markdown table, and
what the same comes to at 10^9 rows.
"""

from __future__ import annotations

import argparse
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

from operators.base import uniform
from tasks.build import CORPUS
from tasks.commit import Footer, commit_table
from tasks.dataset import Folder, shard_key
from tasks.diff.join import join
from tasks.gather import partition_name
from tasks.lineage.reading import Tally
from tasks.lineage.search import SOURCE, corpus_rows, layout, scan
from tasks.lineage.trace import trace
from tasks.records import InputShard, Record, compact
from tasks.runs import machine, new_run_id, save_run
from tasks.store import Store
from tasks.summary import Accounts, RunSummary, Shape, StageSummary
from tasks.version import Version, open_version

SHARD_ROWS, FILE_ROWS = 100_000, 100_000
TARGET = 1_000_000_000
MARK = "0123456789ab"


def accounts(rows: int, line: str) -> Accounts:
    return Accounts(rows_in=rows, outcomes={line: rows}, rows_out=rows, outputs={line: rows})


def commit(store: Store, folder: Folder, name: str, table: pa.Table, inputs: list[InputShard]) -> Record:
    key = shard_key(folder.fingerprint, name, [one.content_id for one in inputs])
    said = accounts(table.num_rows, "ok")
    done = commit_table(store, folder.file(name, key), table, Footer.of(folder, name, key, said))
    return Record(
        stage=folder.stage,
        fingerprint=folder.fingerprint,
        name=name,
        key=key,
        path=done.path,
        sha256=done.sha256,
        bytes=done.bytes,
        rows=done.rows,
        accounts=said,
        inputs=inputs,
    )


def annotation(ids: list[str], kept: np.ndarray[Any, Any]) -> pa.Table:
    rows = len(ids)
    routes = pa.array(np.where(kept, "keep", "drop"))
    columns = {"id": ids, "route": routes, "route_reason": ["harm_score = 0"] * rows, "status": ["ok"] * rows}
    return pa.table({**columns, "reason": pa.nulls(rows, pa.string())})


def corpus_table(rows: list[tuple[str, str, int]], words: list[str], draw: Random) -> pa.Table:
    made: dict[str, Any] = {one.name: pa.nulls(len(rows), one.type) for one in CORPUS}
    made["id"] = [one[0] for one in rows]
    made["text"] = [" ".join(draw.choices(words, k=60)) for _ in rows]
    made["origin"] = ["real"] * len(rows)
    made["source_shard"] = [one[1] for one in rows]
    made["source_ordinal"] = pa.array([one[2] for one in rows], pa.int64())
    made["tagged"], made["tokens"] = [False] * len(rows), pa.array([60] * len(rows), pa.int32())
    return pa.table(made, schema=CORPUS)


def write_root(store: Store, rows: int) -> tuple[str, str, str]:
    """Returns the ids of a kept and of a dropped row, and the dropped one's shard."""
    draw = Random(0)
    words = [uuid.UUID(int=draw.getrandbits(128)).hex[:7] for _ in range(20_000)]
    folders = {"route": Folder("route", MARK), "scatter": Folder("corpus-scatter-real", MARK, hidden=True)}
    partitions = max(1, rows // 2 // FILE_ROWS)
    files: list[list[tuple[str, str, int]]] = [[] for _ in range(partitions)]
    records: dict[str, list[Record]] = {"route": [], "scatter": [], "corpus": []}
    kept_id = dropped = ("", "")
    for shard in range(max(1, rows // SHARD_ROWS)):
        name = f"crawl/part-{shard:05d}.parquet"
        ids = [str(uuid.UUID(int=draw.getrandbits(128))) for _ in range(SHARD_ROWS)]
        kept = np.arange(SHARD_ROWS) % 2 == 0
        source = InputShard(name=name, path=name, token="1-1-1", content_id="f" * 64)
        record = commit(store, folders["route"], name, annotation(ids, kept), [source])
        records["route"].append(record)
        seen = InputShard(name=name, path=record.path, token="", content_id=record.sha256)
        records["scatter"].append(record.model_copy(update={"stage": folders["scatter"].stage, "inputs": [seen]}))
        for place in np.flatnonzero(kept).tolist():
            files[int(uniform(0, "place", ids[place]) * partitions)].append((ids[place], name, place))
        kept_id, dropped = (ids[0], name), (ids[1], name)
    gathered = Folder("corpus", MARK)
    for number, held in enumerate(files):
        inputs = [InputShard(name="", path="", token="", content_id=MARK)]
        table = corpus_table(held, words, draw)
        records["corpus"].append(commit(store, gathered, partition_name(number, partitions), table, inputs))
    stages = [
        summary(store, folders["route"], Shape.ANNOTATE, "Route", records["route"], {"config": {"routes": []}}),
        summary(
            store,
            folders["scatter"],
            Shape.BUILD,
            "Scatter",
            records["scatter"],
            {"seed": 0, "origin": {"routes": ["keep"]}},
        ),
        summary(store, gathered, Shape.BUILD, "Gather", records["corpus"], {}),
    ]
    run = RunSummary(
        run_id=new_run_id(), flow="benchmark", started="", input=store.url_of("source"), output=store.url,
        corpus="corpus", stages=stages,
    )  # fmt: skip
    save_run(store, run)
    return kept_id[0], dropped[0], dropped[1]


def summary(
    store: Store, folder: Folder, shape: Shape, operator: str, records: list[Record], identity: dict[str, Any]
) -> StageSummary:
    return StageSummary(
        name=folder.stage,
        shape=shape,
        operator=operator,
        version="1",
        fingerprint=folder.fingerprint,
        folder=folder.data,
        dataset_version=compact(store, folder, records),
        accounts=accounts(sum(record.rows for record in records), "ok"),
        identity=identity,
    )


def measured(what: str, work: Callable[[Tally], int]) -> tuple[Tally, float, float]:
    """``work`` returns the rows that it looked at. Once before, so that the files are in the page cache."""
    work(Tally())
    tally, wall, cpu = Tally(), time.perf_counter(), time.process_time()
    rows = work(tally)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"| {what} | {rows:,} | {tally.bytes / 1e6:,.2f} | {tally.requests:,} | {wall:.3f} | {cpu:.3f} |", flush=True)
    return tally, wall, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    stores = [Store(str(given.folder / name)) for name in ("a", "b")]
    began = time.perf_counter()
    kept, dropped, shard = write_root(stores[0], given.rows)
    print(
        f"{given.rows:,} rows in {given.rows // SHARD_ROWS:,} shards, written in {time.perf_counter() - began:.0f} s\n"
    )
    version = open_version(stores[0].url)
    holder = layout(version).holder(SOURCE)
    assert holder is not None and version.gather is not None
    print("| what | rows | MB read | ranges | seconds | CPU s |\n|---|---:|---:|---:|---:|---:|")
    found: list[Any] = []

    def scanned(tally: Tally) -> int:
        found[:] = scan(holder, dropped, None, tally)
        return int(given.rows)

    whole, wall, cpu = measured("scan of every id", scanned)
    assert [one[0] for one in found] == [shard]
    placed, *_ = measured("row of the corpus by its place", lambda tally: len(corpus_rows(version, kept, tally)))
    in_shard, *_ = measured("id in a named shard", lambda tally: len(list(scan(holder, dropped, [shard], tally))))
    traced = measured("whole trace of a kept row, --shard", lambda tally: _trace(stores[0].url, kept, shard, tally))
    _, _, records_cpu = measured("records of the run alone", lambda _: _records(stores[0].url))
    write_root(stores[1], given.rows)
    other = open_version(stores[1].url)
    _, _, join_cpu = measured("diff: join file by file", lambda tally: join(version, other, tally).same)
    split = Version(other.store, other.run.model_copy(deep=True))  # as if it had been placed by another seed
    split.run.stages[1].identity["seed"] = 1
    _, _, hash_cpu = measured("diff: join by hash", lambda tally: join(version, split, tally).same)
    factor = TARGET / given.rows
    print(f"\nat 10^9 rows in {TARGET // SHARD_ROWS:,} shards of {SHARD_ROWS:,}, half of them in the corpus:")
    told = f"{whole.bytes * factor / 1e9:.1f} GB, {whole.requests * factor:,.0f} ranges, {cpu * factor:,.0f} CPU s"
    print(f"- scan: {told} ({wall * factor:,.0f} s here, on one core)")
    for what, one in (("by place", placed), ("in a named shard", in_shard), ("whole trace", traced[0])):
        print(f"- {what}: {one.bytes / 1e6:.2f} MB, {one.requests} ranges, whatever the number of rows")
    print(f"- records of 3 stages: {records_cpu * factor:,.1f} CPU s")
    print(f"- diff: {join_cpu * factor:,.0f} CPU s file by file, {hash_cpu * factor:,.0f} by hash")
    print(machine())


def _trace(url: str, row_id: str, shard: str, tally: Tally) -> int:
    told = trace(open_version(url), row_id, shard)
    tally.bytes, tally.requests = told.search.bytes_read, told.search.requests
    return len(told.documents)


def _records(url: str) -> int:
    return sum(len(stage.records) for stage in open_version(url).stages.values())


if __name__ == "__main__":
    main()
