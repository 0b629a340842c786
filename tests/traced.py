"""An output root with every kind of row, made by the real stages in seconds: lineage and diff are tested on it.

Real: operators for route, tags and rephrasing (with the embedded tokenizer), stages, build, run summary. Toys: language
and harm score that a text says of itself, words for tokens. The language model is a named fake that answers at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.language.engine import Completion, EngineSettings, FinishReason, Request, Sampling
from operators.rephrase.wrap import WrapRephrase
from operators.route import Route
from operators.safety.tags import HarmTags
from tasks import rewrite, stages
from tasks.corpus import CorpusPlan, build_corpus
from tasks.dataset import Dataset
from tasks.lineage.facts import Document, Trace
from tasks.lineage.trace import trace
from tasks.rewrite import Choice
from tasks.run import Run
from tasks.source import SourceColumns, open_source
from tasks.stage import Execution, Executor, Stage, run_stage
from tasks.store import Store
from tasks.summary import RunSummary
from tasks.version import Version, open_version
from tests.toys import Judged, Words

SHARDS = ("part-0.parquet", "2026/part-1.parquet", "web-2.jsonl")
ROWS = 40
KEEP, TAG = "lang = 'en' AND harm_score = 0", "lang = 'en' AND harm_score >= 4"
STRICTER = f"{KEEP} AND tokens > 40"
BROKEN, NULL, FAILS, REFUSED, SHORT = 83, 5, 14, 24, 32
TWICE = "doc-11"  # kept in the first shard, dropped in the second, kept in the third


class Paraphraser:
    """Stands in for a language model: answers with the last two thirds of the prompt's words in another order.

    A prompt that holds FAIL comes back as an error, one that holds REFUSED as nothing, which a gate rejects.
    """

    name = "paraphraser"

    def generate(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[tuple[Request, Completion]]:
        for request in requests:
            if request is None:
                continue
            words = request.messages[-1][1].split()
            if "FAIL" in words:
                yield request, Completion("", FinishReason.ERROR, 0, 0, error="engine refused the prompt")
            elif "REFUSED" in words:
                yield request, Completion("", FinishReason.STOP, len(words), 0)
            else:
                answer = words[: len(words) // 3 : -1]
                yield request, Completion(" ".join(answer), FinishReason.STOP, len(words), len(answer))

    def score(self, texts: Sequence[str]) -> list[Any]:
        raise ValueError("the paraphraser scores nothing")

    def describe(self) -> Mapping[str, str]:
        return {"engine": self.name}

    def close(self) -> None:
        """Nothing to free."""


def text_of(row: int) -> str:
    """Every tenth row is to be tagged, every seventh is German and every ninth of middling harm: both are dropped."""
    marks = "harm=5" if row % 10 == 0 else "lang=de" if row % 7 == 1 else "harm=3" if row % 9 == 0 else "harm=0"
    if row == SHORT:
        return f"Row {row} {marks} is short."
    special = " FAIL" if row == FAILS else " REFUSED" if row == REFUSED else ""
    words = " ".join(f"w{row * 31 + place}" for place in range(20 + row * 17 % 60))
    return f"Row {row} {marks}{special} tells of {words}."


def row_of(row: int) -> dict[str, Any]:
    twice = row in (11, ROWS + 10, 2 * ROWS + 11)
    return {
        "id": TWICE if twice else f"doc-{row}",
        "text": None if row == NULL else text_of(row),
        "url": f"https://example.org/{row}",
        "date": "2026-01-01",
    }


def write_web(folder: Path) -> Path:
    for shard, name in enumerate(SHARDS):
        rows = [row_of(row) for row in range(shard * ROWS, (shard + 1) * ROWS)]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(rows), folder / name)
            continue
        lines = [json.dumps(row) if place != BROKEN - 2 * ROWS else "{broken" for place, row in enumerate(rows)]
        (folder / name).write_text("\n\n".join(lines) + "\n")
    return folder


def write_model(folder: Path, weights: bytes = b"weights") -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return str(folder)


def curate(
    web: Path,
    root: str,
    model: str,
    keep: str = KEEP,
    share: float | None = 0.3,
    seed: int = 0,
    shard_tokens: int = 1000,
    rephrase_share: float = 0.7,
    build: bool = True,
) -> RunSummary:
    """One run. ``tasks.rewrite.load_engine`` has to give a Paraphraser."""
    output, execution = Store(root), Execution(Executor.LOCAL)
    parameters = {"keep": keep, "tag": TAG, "synthetic_share": share, "seed": seed, "shard_tokens": shard_tokens}
    parameters |= {"input": str(web), "output": root, "rephrase_share": rephrase_share, "model": model}
    run = Run("toy", parameters, str(web), output)

    def do(stage: Stage) -> Dataset:
        return run.add(run_stage(stage, output, execution))

    source = open_source(str(web), SourceColumns())
    judged = do(stages.annotate("judged", Judged(), [source], output))
    source = source.with_contents(run.contents("judged"))
    words = do(stages.annotate("tokens", Words(), [source], output))
    routed = do(stages.annotate("route", Route(routes=(("keep", keep), ("tag", TAG))), [judged, words], output))
    wrap = WrapRephrase(piece_tokens=96, seed=seed)
    engine, choice = EngineSettings(model=model, kind="transformers"), Choice("route", ("keep",), rephrase_share, seed)
    rephrased = do(stages.rewrite("rephrase", wrap, engine, Sampling(), choice, [source, routed], output))
    counted = do(stages.annotate("rephrase_tokens", Words(), [rephrased], output))
    if build:
        plan = CorpusPlan(
            real=(source, [words, routed, judged]),
            synthetic=(rephrased, [counted]),
            keep_routes=("keep", "tag"),
            tag_routes=("tag",),
            tags=HarmTags(p=0.2, seed=seed),
            synthetic_share=share,
            shard_tokens=shard_tokens,
            seed=seed,
        )
        corpus = build_corpus(plan, output, do, run)
        run.describe(source, judged, judged, routed, rephrased, corpus, seed)
    return run.finish(max_quarantine=0.5)


@dataclass
class Traced:
    """One output root with two runs: everything kept, then fewer."""

    web: Path
    root: Path
    first: RunSummary
    second: RunSummary
    versions: dict[str, Version] = field(default_factory=dict)

    def one(self, row: int | str, run: RunSummary | None = None, **how: Any) -> Trace:
        return trace(self.version(run or self.first), row if isinstance(row, str) else f"doc-{row}", **how)

    def document(self, row: int | str) -> Document:
        found = self.one(row)
        assert len(found.documents) == 1
        return found.documents[0]

    def version(self, run: RunSummary) -> Version:
        if run.run_id not in self.versions:
            self.versions[run.run_id] = open_version(f"{self.root}@{run.run_id}")
        return self.versions[run.run_id]

    def folder(self, stage: str) -> str:
        return next(str(self.root / one.folder) for one in self.first.stages if one.name == stage)

    def frame(self, stage: str) -> pl.DataFrame:
        return pl.read_parquet(f"{self.folder(stage)}/*.parquet", include_file_paths="file")


@contextmanager
def two_runs(folder: Path) -> Iterator[Traced]:
    """Two runs at one output root, the second with a stricter condition."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewrite, "load_engine", lambda settings, folder: Paraphraser())
        web, model = write_web(folder / "web"), write_model(folder / "model")
        first = curate(web, str(folder / "out"), model)
        time.sleep(1.0)  # the ids of runs sort by the second
        second = curate(web, str(folder / "out"), model, keep=STRICTER)
        assert not first.messages and not second.messages
        yield Traced(web, folder / "out", first, second)
