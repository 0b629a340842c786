"""A run's summary for a terminal: headline, accounts by stage, messages. Fits 80 columns, reads well in a file."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from tasks.report.facts import Facts, facts, without_secrets
from tasks.report.numbers import NO_BREAK, duration, exact, readable, share, short
from tasks.summary import RunSummary, Shape, StageSummary, Status

MAX_LINES = 10
"""Of failures and of messages; what is more is counted, and stands in the report."""
MAX_PARTS = 8
"""Outcomes of one stage."""
_COLOURS = {Status.DONE: "green", Status.BOUNDED: "yellow", Status.FAILED: "red"}
_MARKS = {Status.DONE: "✓", Status.BOUNDED: "→", Status.FAILED: "✗"}
_ASCII = str.maketrans({"✓": "+", "✗": "x", "→": ">", "–": "-", "…": "...", "·": "-", "─": "-"})
_HEAD = ("stage", "rows in", "rows out", "shards", "time")


def print_summary(summary: RunSummary, console: Console) -> None:
    """Prints ``summary``. Colour and width are the console's: a file gets plain text without escape codes."""
    told, colour = facts(summary), _COLOURS[summary.status]
    said = told.words
    if not said.lower().startswith(summary.status.value):
        said = f"{summary.status.value}: {said[:1].lower()}{said[1:]}"
    _print(console, f"{_MARKS[summary.status]} {said}", f"bold {colour}", hang=2)
    for name, value in _headline(summary, told):  # never wrapped: a URL that is broken in two cannot be copied
        console.print(Text.assemble((f"  {name:<8}", "dim"), _safe(value, console)), soft_wrap=True)
    if summary.stages:
        _accounts(summary, console)
    if told.open_stages:
        _print(console, f"✗ accounts do not close in: {', '.join(told.open_stages)}", "bold red", hang=2)
    elif summary.stages:
        _print(console, "✓ accounts close in every stage", "green")
    _failures(summary, console)
    for message in summary.messages[:MAX_LINES]:
        _print(console, f"· {' '.join(str(message).split())}", hang=2)
    if len(summary.messages) > MAX_LINES:
        _print(console, f"· and {len(summary.messages) - MAX_LINES:,} more messages, in the report")


def _headline(summary: RunSummary, told: Facts) -> list[tuple[str, str]]:
    lines = [("corpus", summary.corpus), ("output", "" if summary.corpus else summary.output)]
    lines.append(("report", summary.report))
    if told.tokens is not None:
        mix = ""
        if told.real_tokens is not None and told.synthetic_tokens is not None and told.tokens:
            real, synthetic = share(told.real_tokens, told.tokens), share(told.synthetic_tokens, told.tokens)
            asked = told.requested_synthetic_share
            mix = f" ({real} real, {synthetic} synthetic{'' if asked is None else f'; asked: {share(asked, 1)}'})"
        lines.append(("tokens", short(told.tokens) + mix))
    shards = _shard_words(told.shards_made, told.shards_before, told.shards_failed)
    lines.append(("time", f"{duration(summary.seconds)}; shards: {shards}"))
    return [(name, str(without_secrets(value))) for name, value in lines if value]


def _accounts(summary: RunSummary, console: Console) -> None:
    """One line a stage, and below it, dim, its outcomes where there is more than one."""
    rows = [
        (
            stage.name,
            readable(stage.accounts.rows_in, 11),
            readable(stage.accounts.rows_out, 11),
            f"{exact(stage.shards_before)} found" if not stage.shards_made else f"{exact(stage.shards_made)} made",
            duration(stage.seconds),
        )
        for stage in summary.stages
    ]
    widths = [max(len(row[i]) for row in [_HEAD, *rows]) for i in range(len(_HEAD))]
    room = max(8, console.width - 6 - sum(widths[1:]) - 2 * len(widths[1:]))
    widths[0] = min(widths[0], room)
    console.print()
    _print(console, _row(_HEAD, widths), "dim")
    _print(console, "  " + "─" * (sum(widths) + 2 * len(widths[1:])), "dim")
    for stage, row in zip(summary.stages, rows, strict=True):
        closed = stage.accounts.closed()
        mark, colour = (_MARKS[stage.status], _COLOURS[stage.status]) if closed else ("✗", "red")
        line = Text(_safe(_row(row, widths), console), no_wrap=True)
        console.print(line.append(f"  {_safe(mark, console)}", style=colour), overflow="crop")
        for words in _details(stage):
            _print(console, f"    {words}", "dim", hang=8)
    console.print()


def _row(cells: tuple[str, ...], widths: list[int]) -> str:
    name = cells[0] if len(cells[0]) <= widths[0] else cells[0][: widths[0] - 1] + "…"
    numbers = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join(["  " + name.ljust(widths[0]), *numbers])


def _details(stage: StageSummary) -> list[str]:
    accounts = stage.accounts
    lines = []
    for word, total, counts in (
        ("in: ", accounts.rows_in, accounts.outcomes),
        ("out: ", accounts.rows_out, accounts.outputs),
    ):
        parts = _parts(counts)
        if len(parts) > 1 or sum(counts.values()) != total:
            lines.append(word + (", ".join(parts) or "nothing counted"))
    if len(lines) == 2 and stage.shape is Shape.ANNOTATE and accounts.closed():
        lines.pop()  # rows keep their places: what went out is what came in
    if stage.failures or (stage.shards_made and stage.shards_before):
        lines.append("shards: " + _shard_words(stage.shards_made, stage.shards_before, len(stage.failures)))
    return lines


def _parts(counts: Mapping[str, int]) -> list[str]:
    some = sorted(((name, count) for name, count in counts.items() if count), key=lambda item: (-item[1], item[0]))
    parts = [f"{name.replace('_', ' ')}{NO_BREAK}{exact(count)}" for name, count in some[:MAX_PARTS]]
    return [*parts, f"{len(some) - MAX_PARTS} more"] if len(some) > MAX_PARTS else parts


def _shard_words(made: int, found: int, failed: int) -> str:
    return (
        f"{made:,} made" + (f", {found:,} found finished" if found else "") + (f", {failed:,} failed" if failed else "")
    )


def _failures(summary: RunSummary, console: Console) -> None:
    failures = [(stage.name, failure) for stage in summary.stages for failure in stage.failures]
    for name, failure in failures[:MAX_LINES]:
        times = f"{failure.attempts} attempt{'' if failure.attempts == 1 else 's'}"
        error = " ".join(failure.error.split())
        error = error if len(error) <= 400 else error[:399] + "…"
        _print(console, f"✗ {name}: {failure.shard} ({times}): {error}", "red", hang=2)
    if len(failures) > MAX_LINES:
        _print(console, f"✗ and {len(failures) - MAX_LINES:,} more failed shards, in the report", "red")


def _print(console: Console, text: str, style: str = "", hang: int = 0) -> None:
    """Wrapped here, so that later lines hang below the text and no line ends in spaces."""
    indent = len(text) - len(text.lstrip(" "))
    lines = textwrap.wrap(
        text.lstrip(" "), max(20, console.width), initial_indent=" " * indent, subsequent_indent=" " * hang,
        break_on_hyphens=False,
    ) if len(text) > console.width else [text]  # fmt: skip
    console.print(Text(_safe("\n".join(lines), console), style=style), soft_wrap=True)


def _safe(text: str, console: Console) -> str:
    """What the console's encoding can hold, without control characters and with spaces that grep finds."""
    text = "".join(c if c.isprintable() or c == "\n" else " " for c in text.replace(NO_BREAK, " "))
    if console.encoding.lower().replace("-", "").startswith("utf"):
        return text
    return text.translate(_ASCII).encode("ascii", "replace").decode("ascii")
