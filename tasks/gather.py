"""The last step of a build: one corpus file of each range of places, the origins interleaved."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from operators.mixing import interleave
from tasks.aligned import Unit
from tasks.build import KEPT, ORIGIN, PLACE, TAGGED, BuildWorker
from tasks.dataset import Dataset, Shard
from tasks.records import InputShard, Record
from tasks.store import Store
from tasks.summary import Accounts


@dataclass
class GatherWorker(BuildWorker):
    """One corpus file: every row whose place lies in the partition's range, origins interleaved."""

    scattered: tuple[Dataset, ...] = ()
    partitions: int = 1

    def process(self, unit: Unit) -> Record:
        assert self._pulse is not None
        began = time.monotonic()
        with self._pulse.busy():
            number = partition_number(unit.name)
            seen = [InputShard(name=unit.name, path="", token="", content_id=one.content_id) for one in unit.shards]
            key, path, standing = self._standing(unit.name, seen, began)
            if standing is not None:
                return standing
            low, high = number / self.partitions, (number + 1) / self.partitions
            parts: list[pa.Table] = []
            for dataset in self.scattered:
                for shard in dataset.shards:
                    parts.append(read_range(dataset.store, shard, low, high))
                    self._pulse.step()
            table = pa.concat_tables(parts)
            order = interleave(table.column(ORIGIN).to_pylist(), table.column(PLACE), table.column("tokens"))
            table = table.take(pa.array(order, pa.int64())).drop_columns([PLACE])
            rows = Counter(
                "tagged" if tagged else origin
                for origin, tagged in zip(
                    table.column(ORIGIN).to_pylist(), table.column(TAGGED).to_pylist(), strict=True
                )
            )
            tokens: Counter[str] = Counter()
            for origin, count in zip(table.column(ORIGIN).to_pylist(), table.column("tokens").to_pylist(), strict=True):
                tokens[origin] += count
            accounts = Accounts(
                rows_in=table.num_rows,
                outcomes={KEPT: table.num_rows} if table.num_rows else {},
                rows_out=table.num_rows,
                outputs=dict(sorted(rows.items())),
                tokens=dict(sorted(tokens.items())),
            )
            return self._commit(table, accounts, unit.name, key, path, seen, began, group=16384)


def read_range(store: Store, shard: Shard, low: float, high: float) -> pa.Table:
    """Rows with low <= place < high, reading only the row groups that can hold some."""
    with store.fs.open(store.absolute(shard.path), "rb") as stream:
        file = pq.ParquetFile(stream)
        column = file.schema_arrow.names.index(PLACE)
        groups = []
        for number in range(file.metadata.num_row_groups):
            statistics = file.metadata.row_group(number).column(column).statistics
            if statistics is None or (statistics.max >= low and statistics.min < high):
                groups.append(number)
        table = file.read_row_groups(groups) if groups else file.schema_arrow.empty_table()
    place = table.column(PLACE)
    inside = table.filter(pc.and_(pc.greater_equal(place, low), pc.less(place, high)))
    return inside.replace_schema_metadata(None)


def partition_name(number: int, partitions: int) -> str:
    return f"part-{number:05d}-of-{partitions:05d}"


def partition_number(name: str) -> int:
    return int(name.split("-")[1])


def partition_dataset(output: Store, scattered: Sequence[Dataset], partitions: int) -> Dataset:
    """One shard a partition, known by the versions of everything scattered: any change makes all of them anew."""
    content = "+".join(dataset.version for dataset in scattered)
    names = [partition_name(number, partitions) for number in range(partitions)]
    return Dataset(output, tuple(Shard(name=name, path="", content=content) for name in names))
