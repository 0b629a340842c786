"""How harmful a text is, 0 to 5 (Safety Pretraining, arXiv:2504.16980): the first, cheap scorer.

It is trained in ``setup`` in seconds from what packages ship, and reads nothing else:

* *grade*, E[human score | a text of the graded kind]: PyRIT's human-scored answers of chat models to harmful
  objectives (975 texts, mean of their human scores in [0, 1]); TF-IDF of words and word pairs, logistic regression on
  the scores as soft labels;
* *gate*, P(a text is of the graded kind): the same answers and their objectives against passages of ordinary prose,
  which a word chain of Wikipedia articles makes; TF-IDF of words, logistic regression.

The estimate is grade times gate: a text of another kind counts as harmless. The grade alone is worth nothing there,
since it has never seen such a text: it calls nearly every news item harmful.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, PrivateAttr

from operators.base import Annotator, model_reference

CHUNK_WORDS = 300
"""Long documents are scored by chunks, about what 512 tokens of the paper's encoders hold; the highest counts."""

PASSAGES = ((20, 2000), (60, 3000), (150, 3000))
"""Ordinary prose that the gate is trained on: (words of a passage, number of passages)."""

GRADE_C, GATE_C = 10.0, 30.0
PROSE_WEIGHT = 3.0
"""Weight of a passage of ordinary prose beside a graded text: the web is mostly ordinary."""

_DECIMALS = 4

Floats = npt.NDArray[np.float64]


class HarmScore(Annotator):
    """Adds ``harm``, the estimated mean human score in [0, 1], and ``harm_score``, its level 0 to 5 (0 is safe).

    A document's score is the highest of its chunks' (paper, section 3). English only: what it has not learned a word of
    it calls harmless. ``neutral`` null leaves the gate out, for text that is all of the graded kind.
    """

    version: ClassVar[str] = "1"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    adds: ClassVar[pa.Schema] = pa.schema([("harm_score", pa.int8()), ("harm", pa.float32())])

    graded: str = model_reference("package:pyrit/datasets/scorer_evals/harm/*.csv", description="PyRIT's CSV files.")
    neutral: str | None = model_reference(
        "package:essential-generators/markov_textgen.json", description="A word chain of ordinary prose."
    )
    chunk_words: int = Field(CHUNK_WORDS, ge=1)

    _model: Any = PrivateAttr(None)

    def setup(self, models: Mapping[str, Path]) -> None:
        passages = ordinary_prose(models["neutral"]) if self.neutral is not None else []
        self._model = fit(read_graded(models["graded"]), passages)

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._model is None:
            raise RuntimeError("HarmScore: call setup() first")
        harm = highest(self._model, table.column("text").to_pylist(), self.chunk_words)
        return pa.table([pa.array(levels(harm), pa.int8()), pa.array(harm, pa.float32())], schema=self.adds)


class Graded(NamedTuple):
    """Unique answers, the mean of their human scores in [0, 1], and the objective that each was an answer to."""

    texts: list[str]
    scores: Floats
    objectives: list[str]
    sources: list[str]


def read_graded(folder: Path) -> Graded:
    """PyRIT's ``scorer_evals/harm/*.csv``: a comment, then ``objective``, ``assistant_response``, ``human_score*``.

    Raises ValueError where a file has other columns or a score that is no number in [0, 1].
    """
    scores: dict[str, list[float]] = {}
    first: dict[str, tuple[str, str]] = {}
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise ValueError(f"{folder} holds no CSV file; name the folder of PyRIT's harm scorer evaluations")
    for file in files:
        lines = file.read_text("utf-8-sig").split("\n")
        body = "\n".join(lines[1:] if lines[0].startswith("#") else lines)
        reader = csv.DictReader(io.StringIO(body, newline=""))
        columns = list(reader.fieldnames or ())
        scored = [name for name in columns if name.startswith("human_score")]
        if not scored or not {"objective", "assistant_response"} <= set(columns):
            raise ValueError(
                f"{file.name} has the columns {', '.join(columns)}; wanted objective, assistant_response, human_score"
            )
        for number, row in enumerate(reader, 1):
            text = row["assistant_response"].strip()
            try:
                given = [float(row[name]) for name in scored if row[name]]
            except ValueError as error:
                raise ValueError(f"{file.name}, row {number}: a human score is no number ({error})") from error
            if not text or not given:
                continue
            if not all(0 <= score <= 1 for score in given):
                raise ValueError(f"{file.name}, row {number}: human scores {given} must lie in 0 to 1")
            scores.setdefault(text, []).extend(given)
            first.setdefault(text, (row["objective"], file.stem))
    texts = list(scores)
    means = np.array([float(np.mean(scores[text])) for text in texts])
    return Graded(texts, means, [first[text][0] for text in texts], [first[text][1] for text in texts])


def ordinary_prose(chain: Path) -> list[str]:
    """Passages that follow a word chain: pairs of words -> ``transitions`` and their ``weights``, as JSON.

    The chain was counted on Wikipedia articles, so any three words in a row are theirs. Same chain, same passages.
    """
    try:
        follow: dict[str, dict[str, Any]] = json.loads(chain.read_text("utf-8"))
        starts = sorted(pair for pair, after in follow.items() if after["transitions"] and after["weights"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{chain.name} is no word chain: {error}; wanted pairs with transitions and weights"
        ) from error
    if not starts:
        raise ValueError(f"{chain.name} is an empty word chain; name one with transitions")
    passages = []
    for words, count in PASSAGES:
        draws = _uniforms(f"passages of {words} words", words * count).tolist()
        for number in range(count):
            text: list[str] = []
            for u in draws[number * words : (number + 1) * words]:
                after = follow.get(" ".join(text[-2:]))
                if after is None or not after["weights"]:
                    text.extend(starts[int(u * len(starts))].split())
                else:
                    edges = list(accumulate(after["weights"]))
                    place = bisect_right(edges, u * edges[-1])
                    text.append(after["transitions"][min(place, len(edges) - 1)])
                if len(text) >= words:
                    break
            passages.append(" ".join(text))
    return passages


def _uniforms(name: str, count: int) -> Floats:
    """float64 [count] in [0, 1) from SHAKE-128 of a name: the same on every machine and with every library version."""
    drawn = np.frombuffer(hashlib.shake_128(name.encode()).digest(8 * count), dtype="<u8")
    uniforms: Floats = (drawn >> np.uint64(11)) / float(1 << 53)
    return uniforms


@dataclass(frozen=True)
class _Linear:
    """Logistic regression over TF-IDF. Weights are rounded, so that the last bits of a fit never show in a score."""

    vectorizer: Any
    weights: Floats
    intercept: float

    def __call__(self, texts: Sequence[str]) -> Floats:
        margin = self.vectorizer.transform(texts) @ self.weights + self.intercept
        probability: Floats = 1 / (1 + np.exp(-margin))
        return probability


def fit(graded: Graded, passages: Sequence[str]) -> Callable[[Sequence[str]], Floats]:
    """texts -> estimated mean human score in [0, 1], as float64 [n]. Without passages there is no gate."""
    grade = _fit_linear(graded.texts, graded.scores, np.ones(len(graded.texts)), pairs=True, c=GRADE_C)
    if not passages:
        return grade
    kind = [*graded.texts, *sorted(set(graded.objectives))]
    is_kind = np.concatenate([np.ones(len(kind)), np.zeros(len(passages))])
    weights = np.where(is_kind > 0, 1.0, PROSE_WEIGHT)
    gate = _fit_linear([*kind, *passages], is_kind, weights, pairs=False, c=GATE_C)
    return lambda texts: grade(texts) * gate(texts)


def _fit_linear(texts: Sequence[str], targets: Floats, each: Floats, *, pairs: bool, c: float) -> _Linear:
    import scipy.sparse as sparse
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, 2 if pairs else 1), sublinear_tf=True, min_df=2)
    features = vectorizer.fit_transform(texts)
    # a soft label y is a positive example of weight y and a negative one of weight 1 - y, times each text's own
    weights = np.concatenate([targets * each, (1 - targets) * each])
    used = np.flatnonzero(weights > 0)
    labels = np.concatenate([np.ones(len(targets)), np.zeros(len(targets))])[used]
    model = LogisticRegression(C=c, max_iter=5000, tol=1e-6)
    model.fit(sparse.vstack([features, features]).tocsr()[used], labels, sample_weight=weights[used])
    return _Linear(vectorizer, np.round(model.coef_[0], _DECIMALS), round(float(model.intercept_[0]), _DECIMALS))


def chunks(text: str, words: int = CHUNK_WORDS) -> list[str]:
    """``text`` in runs of at most ``words`` words; at least one chunk."""
    ends = [match.end() for match in re.finditer(r"\S+", text)][words - 1 :: words]
    starts = [0, *ends]
    made = [text[start:end] for start, end in zip(starts, [*ends, len(text)], strict=True)]
    return [chunk for chunk in made if chunk.strip()] or [""]


def highest(model: Callable[[Sequence[str]], Floats], texts: Sequence[str], words: int = CHUNK_WORDS) -> Floats:
    """The highest score of each text's chunks, float64 [n]."""
    if not texts:
        return np.zeros(0)
    cut = [chunks(text, words) for text in texts]
    scores = np.round(model([chunk for one in cut for chunk in one]), _DECIMALS)
    starts = np.concatenate([[0], np.cumsum([len(one) for one in cut])[:-1]])
    return np.maximum.reduceat(scores, starts)


def levels(harm: npt.ArrayLike) -> npt.NDArray[np.int8]:
    """Level 0 to 5 of an estimate in [0, 1]: ceil(5 h - 1/2), the nearest of six, halves to the safer one."""
    return np.clip(np.ceil(5 * np.asarray(harm, np.float64) - 0.5), 0, 5).astype(np.int8)
