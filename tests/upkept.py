"""A small flow with every shape of stage whose rows fail until somebody cures them: retry and gc are tested on it.

Real: route, stages, ledger, build, run summary. Toys: operators that write down every text they are given. The language
model is a named fake that does the same.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from operators.base import Annotator, execution
from operators.language.engine import EngineSettings, Sampling
from operators.route import Route
from operators.safety.tags import HarmTags
from tasks import rewrite, stages
from tasks.corpus import CorpusPlan, build_corpus
from tasks.dataset import HIDDEN, Dataset
from tasks.garbage import sweep
from tasks.garbage.find import Garbage, find_garbage
from tasks.observe import Observer, observer, watched_by
from tasks.pending import Retry
from tasks.rewrite import Choice
from tasks.run import Run
from tasks.selection import Selection
from tasks.source import SourceColumns, open_source
from tasks.stage import Execution, Executor, Stage, run_stage
from tasks.store import Store
from tasks.summary import RunSummary
from tasks.verify import verify
from tests.toys import FakeEngine, Judged, Reverse, Words

LOCAL = Execution(executor=Executor.LOCAL)
STRICT = "lang = 'en' AND harm_score = 0 AND tokens > 15"
KEEP = "lang = 'en' AND harm_score = 0"


class Moody(Annotator):
    """Raises on a text that holds POISON and refuses one that holds REFUSE, until the file ``cure`` names the word.

    Every text that it is given goes to the file ``calls``.
    """

    version: ClassVar[str] = "1"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    adds: ClassVar[pa.Schema] = pa.schema([("mood", pa.int64())])

    calls: str = execution("")
    cure: str = execution("")

    def __call__(self, table: pa.Table) -> pa.Table:
        texts = table.column("text").to_pylist()
        with Path(self.calls).open("a") as stream:
            stream.writelines(f"{text}\n" for text in texts)
        cured = Path(self.cure).read_text().split() if Path(self.cure).exists() else []
        ill = {word for word in ("POISON", "REFUSE", "CRASH") if word not in cured}
        if any("CRASH" in text for text in texts) and "CRASH" in ill:
            raise MemoryError("CRASH")  # no row's fault: the shard fails
        if any("POISON" in text for text in texts) and "POISON" in ill:
            raise ValueError("cannot stomach POISON")
        reasons = ["holds REFUSE" if "REFUSE" in text and "REFUSE" in ill else None for text in texts]
        return pa.table({"mood": [len(text) for text in texts], "reason": pa.array(reasons, pa.string())})


class Styled(Reverse):
    """A rewriter whose rows a corpus takes."""

    adds: ClassVar[pa.Schema] = pa.schema(
        [*Reverse.adds, ("style", pa.string()), ("piece_start", pa.int64()), ("piece_end", pa.int64())]
    )

    def parse(self, row: Mapping[str, Any], completions: Any) -> list[dict[str, Any]]:
        return [
            {**one, "style": "qa", "piece_start": 0, "piece_end": len(row["text"])}
            for one in super().parse(row, completions)
        ]


class Cured(FakeEngine):
    """The fake engine, which answers a prompt that holds FAIL as soon as the file ``cure`` says so."""

    def __init__(self, calls: Path, cure: Path, delay: float = 0.0) -> None:
        super().__init__(calls, delay)
        self.cure = cure

    def generate(self, requests: Any, sampling: Sampling) -> Any:
        for request, completion in super().generate(requests, sampling):
            if completion.error and self.cure.exists() and "FAIL" in self.cure.read_text().split():
                prompt = request.messages[-1][1]
                completion = type(completion)(prompt[::-1], type(completion.finish_reason).STOP, 1, 1)
            yield request, completion


class Place:
    """Source, model, counters and cure of one test; ``root``: the output."""

    def __init__(self, folder: Path, root: str) -> None:
        self.folder, self.root, self.store = folder, root, Store(root)
        self.web, self.model = folder / "web", folder / "model"
        self.cure, self.texts, self.prompts = folder / "cure", folder / "texts", folder / "prompts"
        if not self.web.exists():
            self.web.mkdir(parents=True)
            self.texts.touch()
            self.prompts.touch()
            self.use_model("model", b"weights")

    def use_model(self, name: str, weights: bytes) -> None:
        self.model = self.folder / name
        self.model.mkdir(exist_ok=True)
        (self.model / "config.json").write_text("{}")
        (self.model / "model.safetensors").write_bytes(weights)

    def write(self, shard: str, texts: list[str]) -> None:
        ids = [f"{shard}-{place}" for place in range(len(texts))]
        table = {"id": ids, "text": texts, "url": ids, "date": ["2026-01-01"] * len(texts)}
        pq.write_table(pa.table(table), self.web / f"{shard}.parquet")

    def cures(self, *words: str) -> None:
        self.cure.write_text(" ".join(words))

    def calls(self) -> tuple[Counter[str], Counter[str]]:
        """Texts and prompts that were worked on since the last call."""
        found = tuple(Counter(file.read_text().splitlines()) for file in (self.texts, self.prompts))
        for file in (self.texts, self.prompts):
            file.write_text("")
        return found[0], found[1]

    def curate(
        self, keep: str = KEEP, retry: Retry | None = None, build: bool = True, delay: float = 0.0, shards: str = ""
    ) -> RunSummary:
        """One run of the flow."""
        load, rewrite.load_engine = rewrite.load_engine, lambda settings, folder: Cured(self.prompts, self.cure, delay)
        try:
            with watched_by(Observer(retry=retry)):
                return self._curate(keep, build, shards)
        finally:
            rewrite.load_engine = load

    def _curate(self, keep: str, build: bool, shards: str) -> RunSummary:
        run = Run("toy", {"keep": keep, "shards": [shards] if shards else []}, str(self.web), self.store)

        def do(stage: Stage) -> Dataset:
            return run.add(run_stage(stage, self.store, LOCAL, retry=observer().retry))

        source, _ = Selection((shards,) if shards else ()).of(open_source(str(self.web), SourceColumns()))
        moody = Moody(batch_size=4, calls=str(self.texts), cure=str(self.cure))
        moods = do(stages.annotate("mood", moody, [source], self.store))
        source = source.with_contents(run.contents("mood"))
        judged = do(stages.annotate("judged", Judged(), [source], self.store))
        words = do(stages.annotate("tokens", Words(), [source], self.store))
        routed = do(stages.annotate("route", Route(routes=(("keep", keep),)), [judged, words, moods], self.store))
        engine, choice = EngineSettings(model=str(self.model), kind="transformers"), Choice("route", ("keep",), 1.0, 0)
        written = do(stages.rewrite("reverse", Styled(), engine, Sampling(), choice, [source, routed], self.store))
        counted = do(stages.annotate("reverse_tokens", Words(), [written], self.store))
        if build:
            real, made = (source, [words, routed, judged]), (written, [counted])
            plan = CorpusPlan(real, made, ("keep",), (), HarmTags(p=0.2, seed=0), None, 10**6, 0)
            corpus = build_corpus(plan, self.store, do, run)
            run.describe(source, judged, judged, routed, written, corpus, 0)
        return run.finish(max_quarantine=0.5)

    def rows(self, folder: str) -> list[dict[str, Any]]:
        """Everything that a reader of the whole folder sees, in name order."""
        found: list[dict[str, Any]] = []
        for entry in self.store.entries(folder):
            with self.store.fetched(entry.path) as (local, _):
                found += pq.read_table(local).to_pylist()
        return found

    def digests(self, *left_out: str) -> dict[str, str]:
        """Parquet files below the root with the hash of their bytes, but for the ledger, whose blocks time cuts."""
        skip = (f"{HIDDEN}/ledger", *left_out)
        return {
            entry.path: hashlib.sha256(self.store.read(entry.path)).hexdigest()
            for entry in self.store.entries()
            if entry.path.endswith(".parquet") and not entry.path.startswith(skip)
        }


def stage_of(summary: RunSummary, name: str) -> Any:
    return next(one for one in summary.stages if one.name == name)


def made(summary: RunSummary) -> dict[str, int]:
    """Shards that the run made, by stage."""
    return {stage.name: stage.shards_made for stage in summary.stages if stage.shards_made}


def sentence(row: int, word: str = "fine") -> str:
    return f"Row {row} is {word} harm=0 and tells of stones. Its number is {row * 7} in all"


def write_shard(place: Place, shard: int, rows: int = 5, start: int = 0) -> None:
    numbers = range(start + shard * 100, start + shard * 100 + rows)
    texts = [sentence(row, "fine" if row % 3 else "mild and wordy, and longer than the others are") for row in numbers]
    texts[1] = sentence(numbers[1], "POISON")
    place.write(f"part-{shard}", texts)


def collect(place: Place, keep: int = 1, ledgers: bool = False) -> Garbage:
    found = find_garbage(place.store, keep, time.time(), ledgers)
    sweep.sweep(place.store, found)
    return found


def paths(store: Store) -> set[str]:
    return {entry.path for entry in store.entries()}


def check(place: Place) -> None:
    found = verify(place.store)
    assert found.ok, found
    assert made(place.curate()) == {}, "the flow did work after a collection"


def put(store: Store, path: str, data: bytes) -> None:
    target = store.absolute(path)
    if store.local:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
    store.fs.pipe_file(target, data)
