"""The build shape: resolve, scatter, gather. Each resumes by its own unit, and the accounts close over all three.

*Resolve* counts the tokens of what each origin could give, by a seeded uniform number per row; from the merged counts
come the cut of each origin (its token share) and the number of partitions: numbers that enter the fingerprints
downstream. *Scatter* takes each input shard, applies cut and harm tags, and sorts its rows by their place in the
corpus. *Gather* (:mod:`tasks.gather`) makes one corpus file of each range of places, the origins interleaved in their
token proportion.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from operators.base import uniforms
from operators.mixing import BINS
from operators.safety.tags import MARK, HarmTags, escaped
from tasks.aligned import SKIPPED, UPSTREAM, Input, Unit, read_unit
from tasks.annotate import finished
from tasks.commit import Footer, adopt, commit_table
from tasks.dataset import Dataset, Folder, shard_key
from tasks.executor import Beat
from tasks.pulse import Pulse
from tasks.records import InputShard, Record
from tasks.source import ID, PROBLEM, TEXT
from tasks.store import Store
from tasks.summary import Accounts
from tasks.texts import as_text

KEPT, DROPPED, NOT_SAMPLED, EMPTY = "kept", "dropped", "not_sampled", "no_text"
PLACE, ORIGIN, TAGGED = "place", "origin", "tagged"
SCATTER_ROWS = 1024
HISTOGRAM = pa.schema([("bin", pa.int32()), ("tokens", pa.int64()), ("rows", pa.int64())])

RESERVED = ("status", "reason", "problem", "raw", "upstream", PLACE)
"""Columns of stages beside those of a corpus; a source's own may not come under these names."""

CORPUS = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("origin", pa.string()),
        ("parent_id", pa.string()),
        ("url", pa.string()),
        ("date", pa.string()),
        ("lang", pa.string()),
        ("harm_score", pa.int8()),
        ("route", pa.string()),
        ("style", pa.string()),
        ("tagged", pa.bool_()),
        ("tokens", pa.int32()),
        ("source_shard", pa.string()),
        ("source_ordinal", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Origin:
    """One source of corpus rows: ``real`` documents or ``synthetic`` rephrases.

    ``routes``: the values of the column ``route`` that are taken, None where every row with a text is. ``cut``: a row
    is kept whose uniform number lies below it. ``lacks``: corpus columns that this origin does not have.
    """

    name: str
    routes: tuple[str, ...] | None
    tag_routes: tuple[str, ...]
    lacks: tuple[str, ...]
    carried: tuple[tuple[str, str], ...] = ()
    cut: float = 1.0

    @property
    def columns(self) -> list[str]:
        made = {"origin", TAGGED, *self.lacks}
        if self.routes is not None:
            made |= {"source_shard", "source_ordinal"}
        wanted = [one for one in CORPUS.names if one not in made]
        return [*wanted, *(name for name, _ in self.carried if name not in self.lacks)]


def corpus_schema(carried: Sequence[tuple[str, str]]) -> pa.Schema:
    """Columns of a corpus: the fixed ones, then what the source's mapping carries along, as strings."""
    return pa.schema([*CORPUS, *(pa.field(name, pa.string()) for name, _ in carried)])


@dataclass
class BuildWorker:
    """What the three steps share: the pulse, and commit of one table under its shard key."""

    output: Store
    folder: Folder
    concurrency: int = 1
    _pulse: Pulse | None = field(default=None, repr=False)

    def setup(self) -> None:
        self._pulse = Pulse()

    def beat(self) -> Beat:
        return self._pulse.beat() if self._pulse is not None else Beat()

    def drain(self) -> None:
        """A unit is small: the one at hand is finished."""

    def close(self) -> None:
        """Nothing is held but memory."""

    def _standing(self, name: str, seen: list[InputShard], began: float) -> tuple[str, str, Record | None]:
        key = shard_key(self.folder.fingerprint, name, [one.content_id for one in seen])
        path = self.folder.file(name, key)
        standing = adopt(self.output, path, key)
        if standing is None:
            return key, path, None
        return key, path, finished(self.output, self.folder, name, standing, seen, began)

    def _commit(
        self,
        table: pa.Table,
        accounts: Accounts,
        name: str,
        key: str,
        path: str,
        seen: list[InputShard],
        began: float,
        group: int = SCATTER_ROWS,
    ) -> Record:
        footer = Footer.of(self.folder, name, key, accounts)
        committed = commit_table(self.output, path, table, footer, row_group_rows=group)
        assert self._pulse is not None
        self._pulse.step(rows=table.num_rows)
        return finished(self.output, self.folder, name, committed, seen, began)


@dataclass
class ResolveWorker(BuildWorker):
    """Counts what one shard could give, by the uniform number that the cut will be laid on."""

    inputs: tuple[Input, ...] = ()
    origin: Origin = Origin("", None, (), ())
    seed: int = 0

    def process(self, unit: Unit) -> Record:
        assert self._pulse is not None
        began = time.monotonic()
        with self._pulse.busy():
            wanted = ["tokens", *(["route"] if self.origin.routes is not None else [])]
            table, seen = read_unit(self.inputs, unit, wanted)
            key, path, standing = self._standing(unit.name, seen, began)
            if standing is not None:
                return standing
            status = eligibility(table, self.origin)
            tokens = pc.fill_null(table.column("tokens"), 0).to_numpy()
            sums = np.zeros((2, BINS), np.int64)
            places = (uniforms(self.seed, "keep", last=table.column(ID).to_pylist()) * BINS).astype(np.int64)
            kept = np.array([state == KEPT for state in status], np.bool_)
            np.add.at(sums[0], places[kept], tokens[kept])
            np.add.at(sums[1], places[kept], 1)
            used = np.flatnonzero(sums[1])
            result = pa.table(
                [pa.array(used, pa.int32()), *(pa.array(one[used], pa.int64()) for one in sums)], schema=HISTOGRAM
            )
            outcomes = {"eligible" if k == KEPT else k: v for k, v in Counter(status).items()}
            accounts = Accounts(rows_in=len(status), outcomes=outcomes, rows_out=len(used), outputs={"bins": len(used)})
            return self._commit(result, accounts, unit.name, key, path, seen, began)


@dataclass
class ScatterWorker(BuildWorker):
    """The rows of one shard that go into the corpus, tagged where their route asks for it, sorted by place."""

    inputs: tuple[Input, ...] = ()
    origin: Origin = Origin("", None, (), ())
    tags: HarmTags = field(default_factory=HarmTags)
    seed: int = 0

    def process(self, unit: Unit) -> Record:
        assert self._pulse is not None
        began = time.monotonic()
        with self._pulse.busy():
            table, seen = read_unit(self.inputs, unit, self.origin.columns)
            key, path, standing = self._standing(unit.name, seen, began)
            if standing is not None:
                return standing
            ids = table.column(ID).to_pylist()
            status = eligibility(table, self.origin)
            keep = [row for row, state in enumerate(status) if state == KEPT]
            if self.origin.cut < 1:
                drawn = uniforms(self.seed, "keep", last=(ids[row] for row in keep))
                for row in np.asarray(keep, np.int64)[drawn >= self.origin.cut].tolist():
                    status[row] = NOT_SAMPLED
                keep = [row for row in keep if status[row] == KEPT]
            rows = self._rows(table, unit.name, keep)
            tagged = int(pc.sum(rows.column(TAGGED)).as_py() or 0)
            outputs = {self.origin.name: len(keep) - tagged, "tagged": tagged}
            accounts = Accounts(
                rows_in=len(status),
                outcomes=dict(sorted(Counter(status).items())),
                rows_out=len(keep),
                outputs={k: v for k, v in outputs.items() if v},
                tokens={self.origin.name: int(pc.sum(rows.column("tokens")).as_py() or 0)},
            )
            return self._commit(rows, accounts, unit.name, key, path, seen, began)

    def _rows(self, table: pa.Table, name: str, keep: list[int]) -> pa.Table:
        chosen = table.column(ID).take(pa.array(keep, pa.int64()))
        places = pa.array(uniforms(self.seed, "place", last=chosen.to_pylist()), pa.float64())
        by_place = [(PLACE, "ascending"), (ID, "ascending")]
        order = pc.sort_indices(pa.table({PLACE: places, ID: chosen}), sort_keys=by_place)
        keep = np.asarray(keep, np.int64)[order.to_numpy()].tolist()
        for carried in {one for one, _ in self.origin.carried} & set(
            table.column_names
        ):  # of types that take may not know
            table = table.set_column(table.column_names.index(carried), carried, as_text(table.column(carried)))
        kept, places = table.take(pa.array(keep, pa.int64())), places.take(order)
        ids = kept.column(ID).to_pylist()
        schema = corpus_schema(self.origin.carried)
        columns: dict[str, Any] = {
            one.name: kept.column(one.name) if one.name in kept.column_names else pa.nulls(len(keep), one.type)
            for one in schema
        }
        columns[ORIGIN] = pa.array([self.origin.name] * len(keep), pa.string())
        if self.origin.routes is not None:
            columns["source_shard"] = pa.array([name] * len(keep), pa.string())
            columns["source_ordinal"] = pa.array(keep, pa.int64())
            routes = kept.column("route").to_pylist()
        else:
            routes = [None] * len(keep)
        marks = [route in self.origin.tag_routes for route in routes]
        tokens = [count or 0 for count in kept.column("tokens").to_pylist()]
        texts = kept.column(TEXT).combine_chunks()
        # few texts are changed, and only those leave Arrow
        changed = pa.array(marks, pa.bool_())
        if _somewhere(texts, MARK):
            changed = pc.or_(changed, pc.match_substring(texts, MARK))
        new: list[str] = []
        for row in pc.indices_nonzero(changed).to_pylist():
            text = texts[row].as_py()
            if marks[row]:
                text, added = self.tags.insert(text, ids[row])
                tokens[row] += added
            else:
                text = escaped(text)
            new.append(text)
        columns[TEXT] = pc.replace_with_mask(texts, changed, pa.array(new, pa.string())) if new else texts
        columns["tokens"] = pa.array(tokens, pa.int32())
        columns[TAGGED] = pa.array(marks, pa.bool_())
        rows = pa.table({one.name: pc.cast(columns[one.name], one.type) for one in schema}, schema=schema)
        return rows.append_column(PLACE, places)


def eligibility(table: pa.Table, origin: Origin) -> list[str]:
    """Outcome of every row before the cut."""
    upstream = table.column(UPSTREAM).to_pylist()
    empty = pc.is_null(table.column(TEXT if TEXT in table.column_names else "tokens"))
    unusable = pc.or_(pc.is_valid(table.column(PROBLEM)), empty).to_pylist()
    routes = table.column("route").to_pylist() if origin.routes is not None else None
    status: list[str] = []
    for row, state in enumerate(upstream):
        if state is not None:
            status.append(SKIPPED)  # why stands where it happened: quarantined is counted once
        elif unusable[row]:
            status.append(EMPTY)
        elif routes is not None and routes[row] not in (origin.routes or ()):
            status.append(DROPPED)
        else:
            status.append(KEPT)
    return status


def _somewhere(texts: pa.Array, word: str) -> bool:
    """Whether the bytes of all texts together hold the word: to search each text costs several times as much."""
    data = texts.buffers()[2]
    return data is not None and word.encode() in data.to_pybytes()


def merged(output: Store, counted: Dataset) -> pa.Table:
    """Sums of the shards' histograms by bin."""
    sums = np.zeros((2, BINS), np.int64)
    for shard in counted.shards:
        with output.fetched(shard.path) as (local, _):
            table = pq.read_table(local)
        bins = table.column("bin").to_numpy()
        for place, name in enumerate(("tokens", "rows")):
            sums[place, bins] += table.column(name).to_numpy()
    return pa.table([pa.array(np.arange(BINS), pa.int32()), *(pa.array(one) for one in sums)], schema=HISTOGRAM)
