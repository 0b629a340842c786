"""Huge and strange documents through every operator: none takes time that grows faster than the text, none is lost.

The limits are generous: some ten times what an idle core takes. What they catch is a square.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from operators.base import Annotator
from operators.language.identify import LanguageId
from operators.language.tokens import TokenCount
from operators.rephrase.chunk import PIECE_TOKENS, TokenCounter, pieces
from operators.rephrase.wrap import WrapRephrase
from operators.safety.harm_score import chunks, highest
from operators.safety.tags import HarmTags, remove_tags

MB = 1 << 20
SENTENCE = "The river runs past stones and a mill; nobody counted them, 3.14 times or 1,000. "

SHAPES: dict[str, Callable[[int], str]] = {
    "one line": lambda size: SENTENCE * (size // len(SENTENCE)),
    "many lines": lambda size: f"{SENTENCE}\n" * (size // len(SENTENCE)),
    "one word a line": lambda size: "stone\n" * (size // 6),
    "hexadecimal without a space": lambda size: (f"{2**127 // 7:032x}" * (size // 32 + 1))[:size],
    "letters without a space": lambda size: ("abcdefghijklmnopqrstuvwxyz" * (size // 26 + 1))[:size],
    "one letter": lambda size: "a" * size,
    "one digit": lambda size: "0" * size,
    "stops": lambda size: "." * size,
    "ideographic stops": lambda size: "。" * (size // 3),
    "sentences without a space": lambda size: "日本語の文章です。" * (size // 27),
    "characters without a space": lambda size: "日本語の文章です" * (size // 24),
    "quotation marks": lambda size: 'a."' * (size // 3),
    "spaces": lambda size: f"x{' ' * size}y",
    "empty lines": lambda size: f"start{chr(10) * size}end",
    "lines of a space": lambda size: "a \n" * (size // 3),
    "wide spaces": lambda size: " \u2003\t\u00a0" * (size // 8) + "x",
    "NULs": lambda size: "\0" * size,
    "control characters": lambda size: "".join(map(chr, range(32))) * (size // 32),
    "right to left": lambda size: "שלום עולם \u202eabc\u202c مرحبا " * (size // 44),
    "emoji of several": lambda size: "👩\u200d👩\u200d👧\u200d👦" * (size // 25),
    "joiners": lambda size: "👩" + "\u200d" * (size // 3),
    "accents": lambda size: "a" + "\u0301" * (size // 2),
    "tags of its own": lambda size: "<|potentially_unsafe_content|> " * (size // 31),
    "half a tag": lambda size: f"<{chr(92) * size}|potentially_unsafe_content|>",
}


@pytest.fixture(scope="module")
def wrap(smollm2: Path) -> WrapRephrase:
    made = WrapRephrase()
    made.setup({"tokenizer": smollm2})
    return made


@pytest.fixture(scope="module")
def annotators(smollm2: Path, lid: Path) -> list[Annotator]:
    language, tokens = LanguageId(), TokenCount()
    language.setup({"model": lid})
    tokens.setup({"tokenizer": smollm2})
    return [language, tokens]


@contextmanager
def at_most(seconds: float, what: str) -> Iterator[None]:
    """Of this thread's own time, whatever else the machine does."""
    began = time.thread_time()
    yield
    assert time.thread_time() - began < seconds, what


def through_all(text: str, annotators: list[Annotator], wrap: WrapRephrase, counter: TokenCounter, a_mb: float) -> int:
    """Takes the text through every operator, each in ``a_mb`` seconds for a megabyte. Returns its tokens."""
    size = max(len(text.encode()) / MB, 0.2)
    table = pa.table({"text": pa.array([text], pa.string())})
    found: dict[str, Any] = {}
    for one in annotators:
        with at_most(a_mb * size, type(one).__name__):
            result = one(table)
        assert result.num_rows == 1
        found |= result.to_pylist()[0]
    with at_most(a_mb * size, "harm"):
        cut = chunks(text)
        assert highest(lambda texts: np.zeros(len(texts)), [text]).tolist() == [0.0]
    assert sum(len(one.split()) for one in cut) == len(text.split())
    with at_most(a_mb * size, "tags"):
        tagged, count = HarmTags(p=0.5).insert(text, "id")
    assert remove_tags(tagged) == text and (count > 0 or len(text.split()) < 50)
    with at_most(4 * a_mb * size, "pieces"):
        made = pieces(text, counter)
    assert all(1 <= one.tokens <= PIECE_TOKENS for one in made)
    assert [one.start for one in made] == sorted(one.start for one in made)
    assert "".join("".join(text[one.start : one.end].split()) for one in made) == "".join(text.split())
    with at_most(4 * a_mb * size, "requests"):
        requests = wrap.requests({"id": "x", "text": text})
    assert len(requests) <= len(made)
    return int(found["tokens"])


@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape_of_text_takes_time_in_proportion(
    shape: str, annotators: list[Annotator], wrap: WrapRephrase, counter: TokenCounter
) -> None:
    through_all(SHAPES[shape](100_000), annotators, wrap, counter, a_mb=25)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_megabyte_of_any_shape_takes_time_in_proportion(
    shape: str, annotators: list[Annotator], wrap: WrapRephrase, counter: TokenCounter
) -> None:
    through_all(SHAPES[shape](MB), annotators, wrap, counter, a_mb=25)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("shape", ["one line", "many lines", "hexadecimal without a space", "letters without a space"])
def test_ten_megabytes_pass_every_operator(
    shape: str, annotators: list[Annotator], wrap: WrapRephrase, counter: TokenCounter
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    through_all(SHAPES[shape](10 * MB), annotators, wrap, counter, a_mb=25)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 4096, f"{grown:.0f} MB"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_tokens_pass_every_operator(
    annotators: list[Annotator], wrap: WrapRephrase, counter: TokenCounter
) -> None:
    assert through_all("stone " * 1_000_000, annotators, wrap, counter, a_mb=25) >= 1_000_000


@pytest.mark.parametrize(
    "text", ["", " ", "\n" * 1000, "\u2028", "\ufeff", "\0", "\U0010ffff", "e\u0301", "👩\u200d👧"]
)
def test_hardly_any_text_at_all(
    text: str, annotators: list[Annotator], wrap: WrapRephrase, counter: TokenCounter
) -> None:
    through_all(text, annotators, wrap, counter, a_mb=25)
