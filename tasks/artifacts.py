"""What Prefect's pages show of a run: rows of its tables, its summary in markdown, one-line descriptions, its link."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tasks.report.facts import facts, without_secrets
from tasks.report.numbers import NO_BREAK, duration, share, short
from tasks.summary import RunSummary, StageSummary, Status

REPORT_URL = "WINNOW_REPORT_URL"
"""Environment variable: base URL of a server that shows reports in a browser (flows/serve/reports.py)."""
REPORT_PATH = "/reports/"
MOST_ROWS = 100
"""Reasons and failed shards of one stage, each, in a table; the report has all."""


def report_link(summary: RunSummary) -> str:
    """A link that a browser follows, where ``winnow serve`` gives out reports; else the report's own URL."""
    base = os.environ.get(REPORT_URL)
    if base:
        return f"{base}{REPORT_PATH}{summary.run_id}?root={quote(summary.output, safe='')}"
    return summary.report if "://" in summary.report else Path(summary.report).as_uri()


def accounts_rows(stage: StageSummary) -> list[dict[str, Any]]:
    """Every row in by outcome, every row out by status, why rows went no further, and the shards that failed."""
    accounts = stage.accounts

    def row(kind: str, what: str, count: int, of: int = 0) -> dict[str, Any]:
        return {
            "stage": stage.name,
            "kind": kind,
            "what": what,
            "count": count,
            "share": share(count, of) if of else "",
        }

    rows = [row("rows in", name.replace("_", " "), n, accounts.rows_in) for name, n in accounts.outcomes.items()]
    rows += [row("rows out", name.replace("_", " "), n, accounts.rows_out) for name, n in accounts.outputs.items()]
    common = sorted(accounts.reasons.items(), key=lambda pair: (-pair[1], pair[0]))
    rows += [row("reason", why, n) for why, n in common[:MOST_ROWS]]
    return rows + [row("failed shard", f"{one.shard}: {one.error}", 1) for one in stage.failures[:MOST_ROWS]]


def stage_line(stage: StageSummary) -> str:
    """How a stage ended, in one line."""
    accounts = stage.accounts
    rows = f"{accounts.rows_in:,} rows in, {accounts.rows_out:,} out"
    return f"{rows}; shards: {_shards(stage)}; {duration(stage.seconds)}"


def run_line(summary: RunSummary) -> str:
    """How a run ended, in one line."""
    return facts(summary).words.replace(NO_BREAK, " ")


def markdown_of(summary: RunSummary) -> str:
    """The summary of a run for Prefect's artifact page, which shows ``run_line`` above it."""
    told = facts(summary)
    lines: list[str] = []
    places = [("input", summary.input), ("output", "" if summary.corpus else summary.output)]
    places += [("corpus", summary.corpus), ("run", summary.run_id)]
    lines += [f"- **{name}** `{without_secrets(place)}`" for name, place in places if place]
    if told.tokens is not None:
        lines.append(f"- **tokens** {short(told.tokens)}")
    lines.append(f"- **time** {duration(summary.seconds)}")
    if summary.report:
        lines.append(f"- **report** [open it]({report_link(summary)})")
    lines += [f"- {message}" for message in summary.messages]
    lines += ["", "| stage | rows in | rows out | quarantined | shards | time |", "|---|---:|---:|---:|---|---:|"]
    for stage in summary.stages:
        accounts = stage.accounts
        mark = "" if accounts.closed() and stage.status is not Status.FAILED else " ✗"
        lines.append(
            f"| {stage.name}{mark} | {accounts.rows_in:,} | {accounts.rows_out:,} | {accounts.quarantined:,} | "
            f"{_shards(stage)} | {duration(stage.seconds)} |"
        )
    return "\n".join(lines)


def _shards(stage: StageSummary) -> str:
    counts = ((stage.shards_made, "made"), (stage.shards_before, "found"), (len(stage.failures), "failed"))
    return ", ".join(f"{count:,} {what}" for count, what in counts if count) or "none"
