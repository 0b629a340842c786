"""Lineage on a real output root with every kind of row; what a trace says is held against the data, read plainly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from operators.base import uniform
from operators.rephrase.styles import Style, template
from operators.safety.tags import TAG as TAG_TOKEN
from tasks.lineage.facts import Document, Rewriting, Trace
from tasks.lineage.trace import Nowhere
from tests.traced import (
    BROKEN,
    FAILS,
    KEEP,
    NULL,
    REFUSED,
    ROWS,
    SHARDS,
    SHORT,
    TAG,
    TWICE,
    Traced,
    text_of,
    two_runs,
)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    with two_runs(tmp_path_factory.mktemp("traced")) as made:
        yield made


def rewriting(document: Document) -> Rewriting:
    (only,) = document.rewritings
    return only


def read(root: Path, file: str, row: int) -> dict[str, Any]:
    return dict(pq.read_table(root / file).slice(row, 1).to_pylist()[0])


# Each kind of row


def test_a_kept_document_tells_source_scores_decision_and_its_row_of_the_corpus(traced: Traced) -> None:
    document = traced.document(2)
    assert (document.shard, document.ordinal) == (SHARDS[0], 2)
    assert document.source.url == str(traced.web / SHARDS[0]) and document.source.state == "as_read"
    assert document.source.values == {"text": text_of(2), "url": "https://example.org/2", "date": "2026-01-01"}
    steps = {step.stage: step for step in document.steps}
    assert steps["judged"].values == {"lang": "en", "harm_score": 0}
    assert steps["tokens"].values == {"tokens": len(text_of(2).split())}
    assert {step.status for step in document.steps} == {"ok"}
    (decision,) = document.decisions
    assert (decision.route, decision.reason, decision.conditions) == ("keep", KEEP, [("keep", KEEP), ("tag", TAG)])
    place = document.corpus.place
    assert document.corpus.outcome == "in_corpus" and place is not None and document.corpus.tagged is False
    assert read(traced.root, place.file, place.row)["text"] == text_of(2)


def test_a_rewritten_row_tells_prompt_model_engine_and_its_parent(traced: Traced) -> None:
    made = traced.frame("rephrase").filter(pl.col("status") == "ok").row(0, named=True)
    found = traced.one(made["id"])
    assert found.asked == "rewritten row of rephrase"
    (document,) = found.documents
    assert document.id == made["parent_id"]
    one = rewriting(document)
    row = next(row for row in one.rows if row.id == made["id"])
    assert (row.text, row.style, row.part) == (made["text"], made["style"], made["part"])
    assert row.prompt is not None and row.prompt.text == template(Style(made["style"]))
    assert (row.prompt.file, row.prompt.version) == (f"{made['style']}.v1.md", "v1")
    making = one.making
    assert making.model.endswith("/model") and len(making.weights) == 64
    assert (making.engine, making.dtype, making.seed) == ("transformers", "float32", 0)
    assert making.sampling["temperature"] == 0 and making.choice["share"] == 0.7
    assert (traced.root / making.ledger).is_dir()


def test_a_dropped_document_tells_which_conditions_it_missed(traced: Traced) -> None:
    document = traced.document(1)
    assert document.corpus.outcome == "dropped"
    (decision,) = document.decisions
    assert decision.route == "drop" and decision.reason == "harm_score=0, lang=de"
    assert rewriting(document).outcome == "not_chosen"


def test_a_quarantined_document_tells_where_its_bytes_lie(traced: Traced) -> None:
    document = traced.document(NULL)
    step = document.steps[0]
    assert (step.status, step.reason, document.corpus.outcome) == ("quarantined", "text is null", "skipped")
    assert step.quarantine is not None
    held = read(traced.root, step.quarantine.file, step.quarantine.row)
    assert (held["shard"], held["ordinal"], held["id"]) == (SHARDS[0], NULL, f"doc-{NULL}")
    assert rewriting(document).outcome == "skipped"


def test_a_line_that_is_no_json_is_found_by_the_id_that_was_made_for_it(traced: Traced) -> None:
    ordinal = BROKEN - 2 * ROWS
    made = traced.frame("judged").filter(pl.col("reason").str.contains("not valid JSON"))
    document = traced.document(made["id"].item())
    assert (document.shard, document.ordinal) == (SHARDS[2], ordinal)
    assert document.source.values["text"].strip() == "{broken"
    place = document.steps[0].quarantine
    assert place is not None and read(traced.root, place.file, place.row)["row"].strip() == b"{broken"


def test_a_document_that_the_engine_refused_is_kept_and_its_rewrite_quarantined(traced: Traced) -> None:
    document = traced.document(FAILS)
    one = rewriting(document)
    assert (one.outcome, one.why, one.rows) == ("quarantined", "engine refused the prompt", [])
    assert one.quarantine is not None
    assert read(traced.root, one.quarantine.file, one.quarantine.row)["id"] == f"doc-{FAILS}"
    assert document.corpus.outcome == "in_corpus"


def test_a_rejected_rewrite_names_its_gate_and_is_in_no_corpus(traced: Traced) -> None:
    rows = rewriting(traced.document(REFUSED)).rows
    rejected = [row for row in rows if row.status == "rejected"]
    assert rejected and {row.reason for row in rejected} == {"empty"}
    assert {row.corpus.outcome for row in rejected} == {"rejected"} and rejected[0].text is None


def test_a_document_without_a_long_piece_says_so(traced: Traced) -> None:
    assert rewriting(traced.document(SHORT)).outcome == "not_sampled"


def test_a_tagged_document_is_in_the_corpus_with_tags(traced: Traced) -> None:
    corpus = traced.document(60).corpus
    assert corpus.outcome == "in_corpus" and corpus.tagged is True and corpus.place is not None
    text = read(traced.root, corpus.place.file, corpus.place.row)["text"]
    assert TAG_TOKEN in text and corpus.tokens == len(text_of(60).split()) + text.count(TAG_TOKEN)


def test_a_row_that_the_mix_left_out_tells_number_and_cut(traced: Traced) -> None:
    held = set(traced.frame("corpus")["id"])
    left = [one for one in traced.frame("rephrase").filter(pl.col("status") == "ok")["id"] if one not in held]
    assert left
    row = next(row for row in rewriting(traced.one(left[0]).documents[0]).rows if row.id == left[0])
    assert row.corpus.outcome == "cut_by_mix"
    assert row.corpus.number == uniform(0, "keep", left[0]) and row.corpus.cut is not None
    assert row.corpus.number >= row.corpus.cut > 0.1


def test_every_row_of_a_repeated_id_is_told_with_its_own_fate(traced: Traced) -> None:
    found = traced.one(TWICE)
    fates = {document.shard: document.corpus.outcome for document in found.documents}
    assert fates == {SHARDS[0]: "in_corpus", SHARDS[1]: "in_corpus", SHARDS[2]: "in_corpus"}
    texts = {document.shard: document.source.values["text"] for document in found.documents}
    places = [document.corpus.place for document in found.documents]
    assert len(set(texts.values())) == 3 and len({(one.file, one.row) for one in places if one}) == 3
    for document in found.documents:
        assert document.corpus.place is not None
        held = read(traced.root, document.corpus.place.file, document.corpus.place.row)
        assert held["text"].replace(TAG_TOKEN, "") == texts[document.shard]
    stricter = traced.one(TWICE, traced.second)
    assert {one.shard: one.corpus.outcome for one in stricter.documents}[SHARDS[0]] == "dropped"


def test_an_id_that_is_nowhere_says_what_was_searched(traced: Traced) -> None:
    with pytest.raises(Nowhere, match=r"'doc-1000' is no id in .*: read the ids of all 6 shards .* 2\d\d rows"):
        traced.one(1000)
    with pytest.raises(Nowhere, match=r"looked in the shard part-0.parquet alone"):
        traced.one(50, shard="part-0")


# The whole root against the data, read plainly


def test_every_source_row_can_be_traced_and_agrees_with_the_data(traced: Traced) -> None:
    judged, tokens, routes = (traced.frame(name) for name in ("judged", "tokens", "route"))
    held = Counter(zip(*traced.frame("corpus").select("source_shard", "source_ordinal"), strict=True))
    seen = 0
    for name in sorted(set(judged["id"])):
        for document in traced.one(name).documents:
            seen += 1
            steps = {step.stage: step for step in document.steps}
            for stage, frame in (("judged", judged), ("tokens", tokens), ("route", routes)):
                step = steps[stage]
                mine = frame.filter(pl.col("file") == str(traced.root / step.place.file))
                plain = mine.row(document.ordinal, named=True)
                assert plain["id"] == name and (plain["status"], plain["reason"]) == (step.status, step.reason)
                assert {key: plain[key] for key in step.values} == step.values
            if document.source.state == "as_read" and steps["judged"].status == "ok":
                assert document.source.values["text"] == text_of(int(document.source.values["url"].rsplit("/", 1)[-1]))
            rows = [document.corpus, *(row.corpus for row in rewriting(document).rows)]
            made = sum(one.outcome == "in_corpus" for one in rows)
            assert made == held[document.shard, document.ordinal], name
            assert all(one.outcome != "missing" for one in rows)
    assert seen == 3 * ROWS


def test_every_rewritten_row_and_corpus_row_leads_back_to_its_document(traced: Traced) -> None:
    corpus = traced.frame("corpus").with_row_index("place")
    places = {(row["file"], row["place"]) for row in corpus.iter_rows(named=True)}
    starts = dict(corpus.group_by("file").agg(pl.col("place").min()).iter_rows())
    told = set()
    for row in corpus.iter_rows(named=True):
        document = owner(traced.one(row["id"]), row)
        assert document.id == (row["parent_id"] or row["id"])
        owners = [document.corpus, *(one.corpus for one in rewriting(document).rows if one.id == row["id"])]
        at = owners[-1] if row["origin"] == "synthetic" else owners[0]
        assert at.place is not None and at.origin == row["origin"] and at.tokens == row["tokens"]
        told.add((str(traced.root / at.place.file), starts[str(traced.root / at.place.file)] + at.place.row))
    assert told == places and len(told) > 100
    for row in traced.frame("rephrase").iter_rows(named=True):
        document = owner(traced.one(row["id"]), row)
        one = next(one for one in rewriting(document).rows if one.id == row["id"])
        assert (one.status, one.reason, one.text) == (row["status"], row["reason"], row["text"])
        assert read(traced.root, one.place.file, one.place.row)["id"] == row["id"]


def owner(found: Trace, row: dict[str, Any]) -> Document:
    """The one document of the trace that the row says it comes from."""
    mine = [one for one in found.documents if (one.shard, one.ordinal) == (row["source_shard"], row["source_ordinal"])]
    assert len(mine) == 1
    return mine[0]
