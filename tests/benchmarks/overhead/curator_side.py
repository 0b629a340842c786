"""NeMo Curator's side of ``peers``, run by the Python of its own environment: read, filter, write, on Xenna.

``rule`` runs as a DocumentFilter in its ScoreFilter, as its own heuristic filters do; ``harm`` as a stage that gives
the operator batches, since a document at a time would be a handicap.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray
from filters import BATCH_ROWS, loaded, rule
from nemo_curator.backends.xenna import XennaExecutor
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.stages.text.filters import DocumentFilter, ScoreFilter
from nemo_curator.stages.text.io.reader import ParquetReader
from nemo_curator.stages.text.io.writer import ParquetWriter
from nemo_curator.tasks import DocumentBatch


class Rule(DocumentFilter):
    def load_model(self) -> None:
        loaded("rule")

    def score_document(self, text: str) -> int:
        return rule(text)

    def keep_document(self, scores: int) -> bool:
        return scores == 0


@dataclass
class Batched(ProcessingStage[DocumentBatch, DocumentBatch]):
    filter_name: str = "harm"
    name: str = "batched_filter"

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["text"]

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["text"]

    def setup(self, _: Any = None) -> None:
        loaded(self.filter_name)

    def process(self, batch: DocumentBatch) -> DocumentBatch:
        frame = batch.to_pandas()
        texts = frame["text"].tolist()
        scores = [
            score
            for at in range(0, len(texts), BATCH_ROWS)
            for score in loaded(self.filter_name)(texts[at : at + BATCH_ROWS])
        ]
        return DocumentBatch(
            dataset_name=batch.dataset_name,
            data=frame[[score == 0 for score in scores]],
            _metadata=batch._metadata,
            _stage_perf=batch._stage_perf,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--filter", default="rule")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--mode", default="streaming")
    given = parser.parse_args()
    shards = sorted(given.source.glob("*.parquet"))
    stage = ScoreFilter(Rule()) if given.filter == "rule" else Batched(given.filter)
    # a share of a core each for reading and writing, which Xenna gives processes of their own
    some = Resources(cpus=0.1)
    pipeline = Pipeline(
        name="overhead",
        stages=[
            ParquetReader(file_paths=str(given.source), files_per_partition=1).with_(
                {name: {"resources": some} for name in ("file_partitioning", "parquet_reader")}
            ),
            stage.with_(resources=Resources(cpus=0.7), num_workers=given.workers),
            ParquetWriter(path=str(given.output / "kept"), write_kwargs={"compression": "zstd"}).with_(resources=some),
        ],
    )
    begun = time.monotonic()
    # on loopback, and the one that Xenna asks where there are others; it asks through the dashboard
    context = ray.init(
        address="local",
        num_cpus=len(os.sched_getaffinity(0)),
        include_dashboard=True,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        runtime_env={"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}},
    )
    os.environ["RAY_ADDRESS"] = context.address_info["gcs_address"]
    pipeline.run(XennaExecutor({"execution_mode": given.mode, "cpu_allocation_percentage": 1.0}))
    done = time.monotonic()
    kept = [str(one) for shard in (given.output / "kept").glob("*.parquet") for one in pq.read_table(shard)["id"]]
    (given.output / "kept.json").write_text(json.dumps(sorted(kept)))
    rows = sum(pq.read_metadata(shard).num_rows for shard in shards)
    print(json.dumps({"ready": begun, "done": done, "rows": rows, "kept": len(kept)}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
