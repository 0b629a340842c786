"""The page of a run: self-contained, escaped, bounded, deterministic, and true to its summary."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from tasks.report import render
from tasks.report.numbers import exact
from tasks.summary import Accounts, Histogram, RunSummary, Sample, Shape, StageSummary
from tests.tasks.report.conftest import (
    DOCUMENTS,
    TAG,
    make_empty,
    make_failed,
    make_huge,
    make_nothing_done,
    make_summary,
)

MAKERS = [make_summary, make_failed, make_nothing_done, make_empty, make_huge]
VOID = {"meta", "br", "link", "img", "input", "hr", "rect", "path"}


class Page(HTMLParser):
    """Reads a page strictly: every tag that opens is closed, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> repeats an attribute: {names}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID or (tag == "path" and "flow" in (dict(attrs).get("class") or "")):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID and (not self.open or self.open[-1] != tag):
            return
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


@pytest.mark.parametrize("make", MAKERS)
def test_page_is_whole_bounded_and_the_same_twice(make) -> None:
    html = render(make())
    assert html == render(make())
    assert html == render(RunSummary.model_validate_json(make().model_dump_json()))
    assert len(html.encode()) <= 420_000
    page = Page(html)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.tags:
        for name in ("aria-labelledby",):
            assert set((attrs.get(name) or "").split()) <= set(ids)
        if (attrs.get("href") or "").startswith("#"):
            assert attrs["href"][1:] in ids


@pytest.mark.parametrize("make", MAKERS)
def test_page_loads_nothing_and_runs_nothing(make) -> None:
    html = render(make())
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name in ("src", "srcset", "data", "action") or name.startswith("on")]
        assert (attrs.get("href") or "#").startswith("#"), (tag, attrs)
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None and "url(" not in style.group(1) and "@import" not in style.group(1)
    assert "http://" not in html and "https://" not in html
    assert "default-src 'none'" in html


def test_numbers_are_those_of_the_summary(summary: RunSummary) -> None:
    text = Page(render(summary)).text
    for stage in summary.stages:
        counts = [stage.accounts.rows_in, stage.accounts.rows_out, *stage.accounts.outcomes.values()]
        counts += [*stage.accounts.outputs.values(), *stage.accounts.reasons.values()]
        for count in counts:
            assert re.search(rf"(?<![\d,]){re.escape(exact(count))}(?![\d,])", text), (stage.name, count)
        assert stage.fingerprint in text and stage.dataset_version in text
    assert f"{exact(DOCUMENTS)} documents became a corpus of 63,375 rows." in text
    assert "77.8\N{NO-BREAK SPACE}% real" in text and "winnow verify s3://lake/curated" in text


HOSTILE = "</style></title></pre><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}\"' onload='x'"


def test_hostile_text_stays_text() -> None:
    """Wherever a summary holds a string, markup in it is shown and not obeyed."""
    accounts = Accounts(
        rows_in=3, outcomes={HOSTILE: 2, "quarantined": 1}, rows_out=3, outputs={HOSTILE: 3},
        reasons={HOSTILE: 1}, tokens={HOSTILE: 5},
    )  # fmt: skip
    stages = [
        StageSummary(
            name=HOSTILE, shape=shape, operator=HOSTILE, version=HOSTILE, fingerprint=HOSTILE, folder=HOSTILE,
            dataset_version=HOSTILE, accounts=accounts, made=accounts, seconds=1.0, shards_made=1,
            failures=[{"shard": HOSTILE, "error": HOSTILE, "attempts": 1}], notes={HOSTILE: {HOSTILE: [HOSTILE]}},
        )
        for shape in Shape
    ]  # fmt: skip
    summary = RunSummary(
        run_id=HOSTILE, flow=HOSTILE, started=HOSTILE, input=HOSTILE, output=HOSTILE, corpus=HOSTILE, report=HOSTILE,
        parameters={HOSTILE: [HOSTILE], "harm_tag": HOSTILE}, stages=stages, routes={HOSTILE: 2, "kept": 1},
        histograms=[Histogram(title=HOSTILE, unit=HOSTILE, bins=[HOSTILE], counts=[3]),
                    Histogram(title="n", unit="n", bins=[f"{i}{HOSTILE}" for i in range(20)], counts=[3] * 20)],
        samples=[Sample(kind=k, id=HOSTILE, label=HOSTILE, before=HOSTILE, after=HOSTILE * 2)
                 for k in ("rephrased", "tagged", "dropped", HOSTILE)],
        versions={HOSTILE: HOSTILE, "winnow": HOSTILE}, machine={HOSTILE: HOSTILE}, messages=[HOSTILE],
    )  # fmt: skip
    html = render(summary)
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    assert "{{ 7 * 7 }}" in page.text and "49" not in page.text


def test_a_text_no_encoding_can_hold_is_shown_all_the_same(summary: RunSummary) -> None:
    summary.samples = [Sample(kind="rephrased", id="a", label="b", before="x\ud800y\x00z", after="ok", harm_score=0)]
    html = render(summary)
    assert html.encode("utf-8") and "\x00" not in html


def test_harmful_texts_are_folded_under_a_warning_and_tags_are_marked(summary: RunSummary) -> None:
    html = render(summary)
    assert html.index("Content warning") < html.index("vermin")
    assert html.count("<details><summary>Show this text") == 3
    assert f"<mark>{TAG.replace('<', '&lt;').replace('>', '&gt;')}</mark>" in html
    assert "<details" not in html[: html.index("vermin")].split("<h3>Rephrased")[1].split("<h3>Tagged")[0]
    summary.samples = [s for s in summary.samples if s.harm_score == 0]
    assert "Content warning" not in render(summary)


def test_what_does_not_close_is_said_aloud() -> None:
    text = Page(render(make_failed())).text
    assert "Accounts do not close in rephrase" in " ".join(text.split())
    assert "48,000 rows in, 15,402 with an outcome" in text
    assert "CUDA error: an illegal memory access" in text and "Failed: 1 shard could not be done." in text
    assert "Accounts do not close" not in Page(render(make_summary())).text


def test_a_run_that_did_no_work_says_so() -> None:
    text = Page(render(make_nothing_done())).text
    assert "This run found everything finished and did no work." in text and "found finished" in text


def test_billions_are_short_and_exact() -> None:
    text = Page(render(make_huge())).text
    assert "1.00\N{NO-BREAK SPACE}B documents" in text and "1,000,000,000" in text


def test_secrets_stay_at_home(summary: RunSummary) -> None:
    summary.parameters = {"storage": {"secret_key": "hunter2", "key": "AKIA", "max_tokens": 77, "tokens": "seen"}}
    summary.output = "s3://user:hunter2@store/out"
    html = render(summary)
    assert "hunter2" not in html and "AKIA" not in html
    assert "max_tokens: 77" in html and "s3://store/out" in html
