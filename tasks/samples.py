"""What the report shows of the data itself: histograms of annotations and a few rows before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from operators.base import uniform
from operators.safety.tags import remove_tags
from tasks.dataset import Dataset, Shard
from tasks.source import ID, TEXT, read_source
from tasks.store import Store
from tasks.summary import Histogram, Sample

SHARDS_READ = 64
TEXT_SHOWN = 4000


def level_histogram(
    dataset: Dataset, column: str, title: str, unit: str, bins: Sequence[str] | None = None
) -> Histogram:
    """Counts of a column over at most 64 shards; given bins keep their order, else the commonest come first."""
    counts: Counter[str] = Counter()
    for table in _tables(dataset, [column], SHARDS_READ):
        counts.update(str(value) for value in table.column(column).to_pylist() if value is not None)
    if len(dataset.shards) > SHARDS_READ:
        title = f"{title} ({SHARDS_READ} of {len(dataset.shards)} shards)"
    if bins is None:
        common = counts.most_common(12)
        rest = sum(counts.values()) - sum(count for _, count in common)
        pairs = [*common, *([("other", rest)] if rest else [])]
        return Histogram(title=title, unit=unit, bins=[name for name, _ in pairs], counts=[n for _, n in pairs])
    return Histogram(title=title, unit=unit, bins=list(bins), counts=[counts[name] for name in bins])


def rephrased(source: Dataset, rewritten: Dataset, seed: int, count: int) -> list[Sample]:
    """Pieces before and after: accepted ones of the first shards, drawn by seed, with the piece that each came from."""
    found: list[Sample] = []
    shards = source.by_name()
    for shard in rewritten.shards:
        table = _read(
            rewritten.store, shard, ["status", ID, "style", TEXT, "source_ordinal", "piece_start", "piece_end"]
        )
        rows = [row for row in table.to_pylist() if row["status"] == "ok"]
        rows.sort(key=lambda row: uniform(seed, "sample", row[ID]))
        if rows:
            texts = read_source(source, shards[shard.name], [TEXT])[0].column(TEXT)
            for row in rows[: count - len(found)]:
                before = texts[row["source_ordinal"]].as_py()[row["piece_start"] : row["piece_end"]]
                found.append(Sample(kind="rephrased", id=row[ID], label=row["style"], before=before, after=row[TEXT]))
        if len(found) >= count:
            break
    return found


def tagged(corpus: Dataset, count: int) -> list[Sample]:
    """Corpus rows with harm tags, beside their text without them."""
    found: list[Sample] = []
    for table in _tables(corpus, [ID, TEXT, "tagged", "route", "harm_score"], 1):
        for row in table.to_pylist():
            if row["tagged"] and len(found) < count:
                text = row[TEXT][:TEXT_SHOWN]
                found.append(
                    Sample(
                        kind="tagged",
                        id=row[ID],
                        label=row["route"],
                        before=remove_tags(text),
                        after=text,
                        harm_score=row["harm_score"],
                    )
                )
    return found


def dropped(source: Dataset, routes: Dataset, scores: Dataset, seed: int, count: int) -> list[Sample]:
    """Documents that no route took, with the reason, from the first shard."""
    for shard in routes.shards[:1]:
        rows = _read(routes.store, shard, [ID, "route", "route_reason"]).to_pylist()
        levels = _read(scores.store, scores.by_name()[shard.name], ["harm_score"]).column("harm_score").to_pylist()
        texts = read_source(source, source.by_name()[shard.name], [TEXT])[0].column(TEXT)
        places = [place for place, row in enumerate(rows) if row["route"] == "drop"]
        places.sort(key=lambda place: uniform(seed, "sample", rows[place][ID]))
        return [
            Sample(
                kind="dropped",
                id=rows[place][ID],
                label=rows[place]["route_reason"] or "",
                before=(texts[place].as_py() or "")[:TEXT_SHOWN],
                harm_score=levels[place],
            )
            for place in places[:count]
        ]
    return []


def route_counts(routes: Dataset) -> dict[str, int]:
    """Source documents by route, over all shards; a row without a route counts as quarantined."""
    counts: Counter[str] = Counter()
    for table in _tables(routes, ["route"], len(routes.shards)):
        counts.update(value if value is not None else "quarantined" for value in table.column("route").to_pylist())
    return dict(counts)


def _tables(dataset: Dataset, columns: Sequence[str], shards: int) -> Iterator[pa.Table]:
    for shard in dataset.shards[:shards]:
        yield _read(dataset.store, shard, columns)


def _read(store: Store, shard: Shard, columns: Sequence[str]) -> Any:
    with store.fs.open(store.absolute(shard.path), "rb") as stream:
        return pq.read_table(stream, columns=list(columns))
