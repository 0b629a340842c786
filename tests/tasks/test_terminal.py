"""The terminal summary: fits its width, plain in a file, true to the summary."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tasks.summary import RunSummary
from tasks.terminal import MAX_LINES, print_summary
from tests.tasks.report.conftest import (
    make_empty,
    make_failed,
    make_huge,
    make_nothing_done,
    make_summary,
)

MAKERS = [make_summary, make_failed, make_nothing_done, make_empty, make_huge]


def shown(summary: RunSummary, **options) -> str:
    file = io.StringIO()
    print_summary(summary, Console(file=file, width=80, **options))
    return file.getvalue()


@pytest.mark.parametrize("make", MAKERS)
def test_fits_80_columns_and_has_no_colour_in_a_file(make) -> None:
    text = shown(make())
    assert "\x1b" not in text and "\N{NO-BREAK SPACE}" not in text
    for line in text.splitlines():
        assert len(line) <= 80 or "://" in line or "x" * 80 in line, line
        assert line == line.rstrip()


def test_colour_on_a_terminal() -> None:
    assert "\x1b[1;32m" in shown(make_summary(), force_terminal=True, color_system="standard")


def test_numbers_and_urls_are_whole() -> None:
    summary = make_summary()
    summary.corpus = "s3://" + "long-bucket-name/" * 9
    text = shown(summary)
    assert summary.corpus in text
    for stage in summary.stages:
        assert f"{stage.accounts.rows_in:,}" in text and stage.name in text
    assert "not sampled 25,150, rewritten 15,402, not chosen 7,417, quarantined 31" in text
    assert "40.1 M (77.8 % real, 22.2 % synthetic; asked: 25 %)" in text
    assert "accounts close in every stage" in text


def test_failure_is_said() -> None:
    text = shown(make_failed())
    assert "accounts do not close in: rephrase" in text and "web-011.parquet (3 attempts): CUDA error" in text
    assert "15 made, 8 found finished, 1 failed" in text


def test_no_work_is_said_and_long_lists_are_counted() -> None:
    assert "found everything finished and did no work" in shown(make_nothing_done())
    assert f"and {300 - MAX_LINES} more messages" in shown(make_huge())


def test_markup_and_escape_codes_in_texts_stay_texts() -> None:
    summary = make_empty()
    summary.messages = ["[red]not red[/red] \x1b[31mno\x1b[0m"]
    text = shown(summary, force_terminal=True, color_system="standard")
    assert "[red]not red[/red]" in text and "\x1b[31m" not in text


def test_an_ascii_console_gets_ascii() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    summary = make_failed()
    summary.corpus = "s3://lake/korpus-ä"
    print_summary(summary, Console(file=file, width=80))
    file.flush()
    assert b"x Failed" in raw.getvalue()
