"""The filters that winnow, datatrove and NeMo Curator all run: one function of texts, written once.

It needs no more than the operators do, so that it can be imported in the peers' environments. A filter gives each
text a number and keeps those with 0. Whatever loads one says when it was ready: a line with the monotonic clock, the
same for all processes of a machine, in the file that ``OVERHEAD_READY`` names.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
from pydantic import PrivateAttr

from operators.base import Annotator

READY, MODELS = "OVERHEAD_READY", "OVERHEAD_MODELS"
BATCH_ROWS = 1024
FEWEST_WORDS, MOST_WORDS = 50, 100_000
SHORTEST_MEAN, LONGEST_MEAN = 3, 10
LEAST_ALPHABETIC, MOST_DUPLICATE_LINES, FEWEST_STOP_WORDS = 0.8, 0.3, 2
STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))

Scores = Callable[[Sequence[str]], list[int]]


def rule(text: str) -> int:
    """How many of these rules, like Gopher's (arXiv:2112.11446, table A1), the text breaks."""
    words = text.split()
    count = len(words)
    if not count:
        return 1
    mean = sum(map(len, words)) / count
    alphabetic = sum(any(map(str.isalpha, word)) for word in words)
    lines = [line for line in text.split("\n") if line.strip()]
    return (
        (not FEWEST_WORDS <= count <= MOST_WORDS)
        + (not SHORTEST_MEAN <= mean <= LONGEST_MEAN)
        + (alphabetic / count < LEAST_ALPHABETIC)
        + (1 - len(set(lines)) / max(1, len(lines)) > MOST_DUPLICATE_LINES)
        + (sum(word in STOP_WORDS for word in words) < FEWEST_STOP_WORDS)
    )


@cache
def loaded(name: str) -> Scores:
    """The filter, once a process. ``harm``: winnow's harm-score operator itself, trained here; 0 is level 0."""
    if name == "rule":
        scores: Scores = lambda texts: [rule(text) for text in texts]  # noqa: E731
    else:
        from operators.safety.harm_score import HarmScore

        operator = HarmScore()
        operator.setup({field: Path(path) for field, path in json.loads(os.environ[MODELS]).items()})
        scores = lambda texts: operator(pa.table({"text": pa.array(texts, pa.string())}))[  # noqa: E731
            "harm_score"
        ].to_pylist()
    if READY in os.environ:
        with open(os.environ[READY], "a") as file:
            file.write(f"{time.monotonic()}\n")
    return scores


class Filtered(Annotator):
    """The filter as winnow's operator. ``tokens``: a sixth of the characters, as the corpus build needs some count."""

    version: ClassVar[str] = "1"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    adds: ClassVar[pa.Schema] = pa.schema([("broken", pa.int8()), ("tokens", pa.int32())])

    name: str
    batch_size: int = BATCH_ROWS

    _scores: Scores | None = PrivateAttr(None)

    def setup(self, models: object) -> None:
        self._scores = loaded(self.name)

    def __call__(self, table: pa.Table) -> pa.Table:
        assert self._scores is not None
        texts = table.column("text").to_pylist()
        counts = [len(text) // 6 for text in texts]
        return pa.table([pa.array(self._scores(texts), pa.int8()), pa.array(counts, pa.int32())], schema=self.adds)
