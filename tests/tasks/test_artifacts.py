"""What a person reads of a run in Prefect: tables, summary, one-line descriptions, link."""

from __future__ import annotations

import pytest

from tasks.artifacts import REPORT_URL, accounts_rows, markdown_of, report_link, run_line, stage_line
from tasks.summary import Accounts, Failure, RunSummary, Shape, StageSummary, Status


def stage(**changes: object) -> StageSummary:
    accounts = Accounts(
        rows_in=8,
        outcomes={"ok": 6, "quarantined": 2},
        rows_out=8,
        outputs={"ok": 6, "quarantined": 2},
        reasons={"text is null": 2},
    )
    made = {"name": "language", "shape": Shape.ANNOTATE, "operator": "LanguageId", "version": "1", "fingerprint": "f"}
    return StageSummary.model_validate(
        {**made, "folder": "language/f", "accounts": accounts, "shards_made": 2, **changes}
    )


def summary(**changes: object) -> RunSummary:
    made = {
        "run_id": "20260314T000000-abcdef",
        "flow": "curate_text",
        "started": "2026-03-14T00:00:00+00:00",
        "seconds": 75.0,
        "input": "s3://me:secret@lake/web",
        "output": "/tank/my out",
        "report": "/tank/my out/.winnow/reports/20260314T000000-abcdef.html",
        "stages": [stage()],
    }
    return RunSummary.model_validate({**made, **changes})


def test_a_table_says_where_every_row_went_and_why() -> None:
    failed = Failure(shard="b.parquet", error="cannot be read", attempts=1)
    rows = accounts_rows(stage(failures=[failed]))
    assert [(row["kind"], row["what"], row["count"], row["share"].replace("\u00a0", " ")) for row in rows] == [
        ("rows in", "ok", 6, "75 %"),
        ("rows in", "quarantined", 2, "25 %"),
        ("rows out", "ok", 6, "75 %"),
        ("rows out", "quarantined", 2, "25 %"),
        ("reason", "text is null", 2, ""),
        ("failed shard", "b.parquet: cannot be read", 1, ""),
    ]
    assert {row["stage"] for row in rows} == {"language"}
    assert all(list(row) == list(rows[0]) for row in rows)  # one set of columns, or the page shows holes


def test_a_stage_and_a_run_are_told_in_one_line() -> None:
    assert stage_line(stage(shards_before=3)).startswith("8 rows in, 8 out; shards: 2 made, 3 found; ")
    assert ", 1 failed; " in stage_line(stage(failures=[Failure(shard="b", error="x", attempts=1)]))
    assert run_line(summary()) == "8 documents went through every stage before the corpus."
    assert run_line(summary(status=Status.FAILED)).startswith("Failed")


def test_the_summary_has_no_secret_and_marks_what_is_open() -> None:
    text = markdown_of(summary(messages=["backfill: 1 of 3 input shards chosen"]))
    assert "secret" not in text
    assert "- backfill: 1 of 3 input shards chosen" in text
    assert "| language | 8 | 8 | 2 | 2 made |" in text
    broken = stage(accounts=Accounts(rows_in=3, outcomes={"ok": 2}))
    assert "| language ✗ |" in markdown_of(summary(stages=[broken]))


def test_the_link_is_one_that_a_browser_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REPORT_URL, raising=False)
    assert report_link(summary()) == "file:///tank/my%20out/.winnow/reports/20260314T000000-abcdef.html"
    assert report_link(summary(report="s3://lake/r.html")) == "s3://lake/r.html"
    monkeypatch.setenv(REPORT_URL, "http://127.0.0.1:4201")
    link = "http://127.0.0.1:4201/reports/20260314T000000-abcdef?root=%2Ftank%2Fmy%20out"
    assert report_link(summary()) == link and f"[open it]({link})" in markdown_of(summary())
