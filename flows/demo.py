"""The demo: its input, written as a crawl would leave it, and the parameters that end in a few minutes on two cores."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from flows.demo_source import documents
from tasks.commit import create
from tasks.store import Store

SHARD_ROWS = 128
INPUT, CONFIG = "input", "curate.yaml"
# A seeded sample of short pieces, so that two cores are done in a few minutes. The 135M model that a package ships
# falls into loops when it is greedy and on long pieces; the gates reject those, so each request is sampled by its seed.
DEMO: dict[str, Any] = {
    "tag": "lang = 'en' AND harm_score >= 3",
    "rephrase_share": 0.25,
    "piece_tokens": 128,
    "max_new_tokens": 200,
    "temperature": 0.5,
    "synthetic_share": 0.1,
    "shard_tokens": 25_000,
    "max_quarantine": 0.01,
}


def write_input(folder: Path, seed: int = 0) -> str:
    """Writes the documents under ``folder``/input, the last shard as gzipped JSON lines, and returns the folder's path.

    Shards that are there already stay as they are. Raises DemoDataMissing where a data package is not installed.
    """
    store = Store(str(folder))
    rows = list(documents(seed))
    starts = range(0, len(rows), SHARD_ROWS)
    for number, start in enumerate(starts):
        part = rows[start : start + SHARD_ROWS]
        if number + 1 < len(starts):
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(part), sink, compression="zstd")
            create(store, f"{INPUT}/web-{number:03d}.parquet", sink.getvalue().to_pybytes())
        else:
            lines = b"".join(orjson.dumps(row) + b"\n" for row in part)
            create(store, f"{INPUT}/web-{number:03d}.jsonl.gz", gzip.compress(lines, mtime=0))
    return store.url_of(INPUT)


def write_config(folder: Path, source: str) -> None:
    """Leaves the demo's parameters as ``folder``/curate.yaml, to go on from; a file that is there stays as it is."""
    store = Store(str(folder))
    parameters = {"input": source, "output": store.url, **DEMO}
    create(store, CONFIG, yaml.safe_dump(parameters, sort_keys=False, allow_unicode=True).encode())
