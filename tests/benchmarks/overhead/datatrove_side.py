"""datatrove's side of ``peers``, run by the Python of its own environment: read, filter, write, a shard a task."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter
from filters import BATCH_ROWS, loaded


class Kept(BaseFilter):
    """The filter, in batches as winnow gives them to its operator."""

    name = "filter"

    def __init__(self, filter_name: str) -> None:
        super().__init__(batch_size=BATCH_ROWS)
        self.filter_name = filter_name

    def filter(self, doc: Any) -> bool:
        return loaded(self.filter_name)([doc.text])[0] == 0

    def filter_batch(self, batch: list[Any]) -> list[bool]:
        return [score == 0 for score in loaded(self.filter_name)([doc.text for doc in batch])]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--filter", default="rule")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    shards = sorted(given.source.glob("*.parquet"))
    begun = time.monotonic()
    LocalPipelineExecutor(
        pipeline=[
            ParquetReader(str(given.source), glob_pattern="*.parquet"),
            Kept(given.filter),
            ParquetWriter(str(given.output / "kept"), compression="zstd"),
        ],
        tasks=len(shards),
        workers=given.workers,
        logging_dir=str(given.output / "logs"),
    ).run()
    done = time.monotonic()
    kept = [str(one) for shard in (given.output / "kept").glob("*.parquet") for one in pq.read_table(shard)["id"]]
    (given.output / "kept.json").write_text(json.dumps(sorted(kept)))
    rows = sum(pq.read_metadata(shard).num_rows for shard in shards)
    print(json.dumps({"ready": begun, "done": done, "rows": rows, "kept": len(kept)}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
