"""A whole small job without Ray and Prefect: annotations with quarantined rows, a rewrite, a build.

For tests that kill it, or run it twice at once, and then ask whether the output is that of an undisturbed run.

Real: stages, local executor, ledger, build, run summary. Toys: the operators. The language model is a named fake whose
answer depends on its prompt alone, and who writes down every prompt that it is given.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from operators.base import Annotator
from operators.language.engine import EngineSettings, Sampling
from operators.route import Route
from operators.safety.tags import HarmTags
from tasks import generation, rewrite, stages
from tasks.commit import TEMPORARY
from tasks.corpus import CorpusPlan, build_corpus
from tasks.dataset import HIDDEN, Dataset
from tasks.observe import Observer, watched_by
from tasks.records import Record, read_records
from tasks.rewrite import Choice
from tasks.run import Run
from tasks.source import SourceColumns, open_source
from tasks.stage import Execution, Executor, Stage, run_stage
from tasks.store import Store
from tasks.summary import RunSummary
from tasks.verify import _folders, verify
from tests.toys import FakeEngine, Words
from tests.upkept import Styled

SHARDS, ROWS = 2, 8
NULL, WORSE = 2, 5  # in every shard: a row that no stage can read, and one that goes nowhere
BLOCK = 4
"""Completions a block of the ledger, so that a shard has several."""
LENIENT, STRICT = 3, 1


class Marked(Annotator):
    """Tokens, language and harm of texts that say their harm of themselves."""

    version: ClassVar[str] = "1"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    adds: ClassVar[pa.Schema] = pa.schema([("tokens", pa.int32()), ("lang", pa.string()), ("harm_score", pa.int8())])

    def __call__(self, table: pa.Table) -> pa.Table:
        texts = table.column("text").to_pylist()
        harm = [int(re.findall(r"harm=(\d)", text)[0]) for text in texts]
        columns = [[len(text.split()) for text in texts], ["en"] * len(texts), harm]
        return pa.table([pa.array(one, field.type) for one, field in zip(columns, self.adds, strict=True)], self.adds)


def text_of(row: int) -> str:
    harm = 5 if row % ROWS == WORSE else row % 4
    return f"Row {row} with harm={harm} tells of stones. Its number is {row * 7} in all. It ends with {row * 11}"


def kept_of(shards: int, most: int = LENIENT) -> set[str]:
    """Ids of the rows that a corpus has to hold."""
    rows = [row for row in range(shards * ROWS) if row % ROWS != NULL]
    return {f"doc-{row}" for row in rows if (5 if row % ROWS == WORSE else row % 4) <= most}


@dataclass(frozen=True)
class Job:
    """``folder``: input, model, the prompts that were answered. ``root``: the output. ``most``: harm that is kept."""

    folder: Path
    root: str
    most: int = LENIENT

    @property
    def prompts(self) -> Path:
        return self.folder / "prompts"

    def write(self, shards: int = SHARDS) -> Job:
        web, model = self.folder / "web", self.folder / "model"
        web.mkdir(parents=True)
        model.mkdir()
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(b"weights")
        for shard in range(shards):
            rows = range(shard * ROWS, (shard + 1) * ROWS)
            texts = [None if row % ROWS == NULL else text_of(row) for row in rows]
            ids = [f"doc-{row}" for row in rows]
            pq.write_table(pa.table({"id": ids, "text": pa.array(texts, pa.string())}), web / f"part-{shard}.parquet")
        return self

    def run(self) -> RunSummary:
        """To be called in a process of its own: it changes the engine and the size of a block there."""
        generation.BLOCK_REQUESTS = BLOCK
        rewrite.load_engine = lambda settings, folder: FakeEngine(self.prompts)
        with watched_by(Observer()):
            return self._run()

    def _run(self) -> RunSummary:
        web, output = str(self.folder / "web"), Store(self.root)
        execution, run = Execution(Executor.LOCAL, workers=1), Run("small", {}, web, output)

        def do(stage: Stage) -> Dataset:
            return run.add(run_stage(stage, output, execution))

        source = open_source(web, SourceColumns())
        marked = do(stages.annotate("marked", Marked(), [source], output))
        source = source.with_contents(run.contents("marked"))
        route = Route(routes=(("keep", f"harm_score <= {self.most}"),))
        routed = do(stages.annotate("route", route, [marked], output))
        engine = EngineSettings(model=str(self.folder / "model"), kind="transformers")
        choice = Choice("route", ("keep",), 1.0, 0)
        written = do(stages.rewrite("reverse", Styled(), engine, Sampling(), choice, [source, routed], output))
        counted = do(stages.annotate("reverse_tokens", Words(), [written], output))
        real, made, tags = (source, [marked, routed]), (written, [counted]), HarmTags(p=0.2, seed=0)
        corpus = build_corpus(CorpusPlan(real, made, ("keep",), (), tags, None, 150, 0), output, do, run)
        assert corpus is not None, run.summary.messages
        return run.finish(max_quarantine=0.5)


@dataclass(frozen=True)
class Output:
    """What has to be the same however often a run was killed. ``made``: facts of every finished shard. ``ledger``: each
    completion by its key, and ``repeated``: how many stand in more than one block. What is left out holds times, ids
    of runs or random names.
    """

    files: dict[str, str]
    quarantine: dict[str, str]
    made: frozenset[tuple[str, ...]]
    ledger: dict[str, str]
    repeated: int

    @classmethod
    def at(cls, root: str) -> Output:
        store = Store(root)
        left_out = (f"{HIDDEN}/{one}/" for one in ("records", "manifests", "runs", "reports", "cards", "running"))
        skip = (*left_out, f"{HIDDEN}/ledger/", f"{HIDDEN}/quarantine/", f"{TEMPORARY}/")
        entries = [entry.path for entry in store.entries()]
        files = {path: _digest(store, path) for path in entries if not path.startswith(skip)}
        records = [one for folder in _folders(store) for one in read_records(store, folder)]
        made = frozenset(
            (
                one.stage,
                one.name,
                one.key,
                one.sha256,
                one.accounts.model_dump_json(),
                *(i.content_id for i in one.inputs),
            )
            for one in records
        )
        quarantine = {one.quarantine: _digest(store, one.quarantine) for one in records if one.quarantine}
        found: Counter[str] = Counter()
        ledger: dict[str, str] = {}
        for path in entries:
            if path.startswith(f"{HIDDEN}/ledger/"):
                for row in rows_of(store, path):
                    assert ledger.setdefault(row["key"], row["text"]) == row["text"], "two answers to one request"
                    found[row["key"]] += 1
        return cls(files, quarantine, made, ledger, sum(count - 1 for count in found.values()))

    def same(self, other: Output) -> bool:
        return (self.files, self.quarantine, self.made, self.ledger) == (
            other.files,
            other.quarantine,
            other.made,
            other.ledger,
        )


def difference(one: Output, other: Output) -> str:
    """The first few facts that one has and the other has not."""
    found = [
        {f"{name}: {fact}" for name, facts in vars(output).items() for fact in _facts(facts)} for output in (one, other)
    ]
    return "; ".join(sorted(found[0] ^ found[1])[:4])


def _facts(held: object) -> list[object]:
    return list(held.items()) if isinstance(held, dict) else list(held) if isinstance(held, frozenset) else []


def rows_of(store: Store, path: str) -> list[dict[str, Any]]:
    with store.fetched(path) as (local, _):
        return list(pq.read_table(local).to_pylist())


def corpus_ids(root: str) -> list[str]:
    """Id of every row of every corpus at the root, sorted."""
    store = Store(root)
    return sorted(row["id"] for entry in store.entries("corpus") for row in rows_of(store, entry.path))


def check_whole(root: str, shards: int = SHARDS) -> None:
    """Every account closes, every row of the input is there once, whatever ``verify`` believes."""
    found = verify(Store(root))
    assert found.ok, found
    kept = kept_of(shards)
    pieces = {f"{one}/reverse-{part}" for one in kept for part in range(3)}
    assert corpus_ids(root) == sorted(kept | pieces), "a row is lost or doubled"


def prompts_twice(file: Path) -> int:
    """How many answers were generated although they had been generated before."""
    counts = Counter(file.read_text().splitlines()) if file.exists() else Counter()
    return sum(count - 1 for count in counts.values())


def _contents(record: Record) -> list[str]:
    return [one.content_id for one in record.inputs]


def _digest(store: Store, path: str) -> str:
    return hashlib.sha256(store.read(path)).hexdigest()
