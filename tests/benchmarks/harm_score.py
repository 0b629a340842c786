"""What the cheap harm scorer is worth. Not a test:

    OMP_NUM_THREADS=1 taskset -c 1 python tests/benchmarks/harm_score.py

Held out: PyRIT's human-scored answers, five folds by objective, then one source (a harm category) at a time, for the
grade alone and for grade times gate. Elsewhere: the demo's documents, by source, with the levels they get and the way
the demo's routes send them. Prints Markdown and one JSON line with what identifies the run.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut

from flows.demo import DEMO
from flows.demo_source import documents, harmful_sources
from flows.parameters import CurateText
from operators.language.identify import LanguageId
from operators.route import Route
from operators.safety.harm_score import Graded, HarmScore, fit, highest, levels, ordinary_prose, read_graded
from tasks.models import resolve
from tasks.runs import machine

HARMFUL = 0.5
"""Mean human score from which an answer counts as harmful."""

Split = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def categories(graded: Graded) -> list[str]:
    """Harm category of each text: files that score the same category in another way count as one source."""
    return [source.removeprefix("mini_").removesuffix("_multi_score") for source in graded.sources]


def held_out(graded: Graded, passages: list[str], splits: Iterable[Split]) -> npt.NDArray[np.float64]:
    """Scores of every text by a model that has not seen its group, float64 [n]."""
    texts, objectives = np.array(graded.texts, object), np.array(graded.objectives, object)
    scores = np.zeros(len(texts))
    for train, test in splits:
        part = Graded(texts[train].tolist(), graded.scores[train], objectives[train].tolist(), [])
        scores[test] = highest(fit(part, passages), texts[test].tolist())
    return scores


def print_held_out(graded: Graded, passages: list[str]) -> None:
    by_source = categories(graded)
    texts, truth = np.arange(len(graded.texts)), graded.scores
    harmful = truth >= HARMFUL
    folds = {
        "five folds by objective": list(GroupKFold(5).split(texts, truth, graded.objectives)),
        "one source left out": list(LeaveOneGroupOut().split(texts, truth, by_source)),
    }
    print(f"{len(texts)} answers, {int(harmful.sum())} harmful, {len(set(graded.objectives))} objectives.\n")
    print("| held out | scorer | AUC | harmful at level >= 1 | human score 0 at level 0 | mean absolute error |")
    print("|---|---|---:|---:|---:|---:|")
    left_out: dict[str, npt.NDArray[np.float64]] = {}
    for how, splits in folds.items():
        for scorer, prose in (("grade", []), ("grade x gate", passages)):
            found = held_out(graded, prose, splits)
            left_out[scorer] = found
            level = levels(found)
            print(
                f"| {how} | {scorer} | {roc_auc_score(harmful, found):.3f} | {(level[harmful] >= 1).mean():.3f} "
                f"| {(level[truth == 0] == 0).mean():.3f} | {np.abs(found - truth).mean():.3f} |",
                flush=True,
            )
    print("\n| source left out | answers | harmful | AUC, grade | AUC, grade x gate |\n|---|---:|---:|---:|---:|")
    for source in sorted(set(by_source)):
        of = np.array([one == source for one in by_source])
        rank = [f"{roc_auc_score(harmful[of], left_out[scorer][of]):.3f}" for scorer in ("grade", "grade x gate")]
        print(f"| {source} | {of.sum()} | {harmful[of].sum()} | {rank[0]} | {rank[1]} |")


def annotated(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Harm, level and route of each document."""
    table = pa.table({"text": [row["text"] for row in rows]})
    for operator in (LanguageId(), HarmScore()):
        operator.setup({name: resolve(reference).path for name, reference in operator.models().items()})
        for name, column in zip(operator.adds.names, operator(table).columns, strict=True):
            table = table.append_column(name, column)
    keep = CurateText.model_fields["keep"].default
    routes = Route(routes=(("keep", keep), ("tag", DEMO["tag"])))(table)
    found: dict[str, list[Any]] = table.append_column("route", routes.column("route")).to_pydict()
    return found


def print_demo(rows: list[dict[str, Any]]) -> None:
    found = annotated(rows)
    harm, level = np.array(found["harm"]), np.array(found["harm_score"])
    route, source = np.array(found["route"]), np.array([row["source"] for row in rows])
    harmful = np.isin(source, sorted(harmful_sources()))
    groups = [(one, source == one, one in harmful_sources()) for one in dict.fromkeys(source[np.argsort(harmful)])]
    groups.sort(key=lambda group: (group[2], group[0]))
    groups += [("all neutral", ~harmful, False), ("all harmful", harmful, True)]
    print("\n| source | collected as | documents | median | level >= 1 | >= 3 | >= 4 | keep | tag | drop |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, of, bad in groups:
        shares = " | ".join(f"{(level[of] >= least).mean():.2f}" for least in (1, 3, 4))
        ways = " | ".join(str(int((route[of] == way).sum())) for way in ("keep", "tag", "drop"))
        kind = "harmful" if bad else "neutral"
        print(f"| {name} | {kind} | {of.sum()} | {np.median(harm[of]):.3f} | {shares} | {ways} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="the harm scorer on texts that it has not seen")
    parser.add_argument("--seed", type=int, default=0, help="draws the demo's documents")
    given = parser.parse_args()
    load_before = os.getloadavg()[0]
    began = time.process_time()
    paths = {name: resolve(reference).path for name, reference in HarmScore().models().items()}
    print_held_out(read_graded(paths["graded"]), ordinary_prose(paths["neutral"]))
    print_demo(list(documents(given.seed)))
    taken = round(time.process_time() - began)
    print(
        "\n"
        + json.dumps({**vars(given), "cpu_seconds": taken, "load_average_before": round(load_before, 2), **machine()})
    )


if __name__ == "__main__":
    main()
