"""Garbage for a terminal: what goes and why, how much it is, what stays. Fits 80 columns."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from tasks.garbage.find import Garbage, Item, Kind
from tasks.summary import Status

MAX_FOREIGN = 5


def print_garbage(found: Garbage, deleted: bool, keep: int, console: Console) -> None:
    """``deleted``: it is gone already; else this is what would go."""
    for kept in found.kept:
        failed = "failed" if kept.status is Status.FAILED else ""
        what = ", ".join(one for one in (f"run {kept.run_id}", kept.part, failed) if one)
        _line(console, f"kept: {kept.corpus} ({what})")
    if found.kept:
        _line(console, f"      {found.files:,} files, {size(found.bytes)}, with stages, records and ledger")
    if found.items:
        console.print()
        table = Table("what", "why", "files", "size", box=None, pad_edge=False)
        for column in table.columns[2:]:
            column.justify, column.no_wrap = "right", True
        for (what, why), held in _groups(found.items):
            table.add_row(what, why, f"{len(held):,}", size(sum(one.bytes for one in held)))
        table.add_section()
        table.add_row("total", "", f"{len(found.items):,}", size(found.total), style="bold")
        console.print(table)
        console.print()
    else:
        _line(console, "nothing to delete: every file of winnow's is needed")
    lost = sum(item.tokens for item in found.items)
    if lost:
        _line(console, f"{lost:,} generated tokens are among it, to be paid for again if their text comes back")
    if found.ledgers:
        tokens, weight = sum(one.tokens for one in found.ledgers), size(sum(one.bytes for one in found.ledgers))
        _line(console, f"kept: ledgers of other models and samplings, {weight}: {tokens:,} generated tokens;")
        _line(console, "      going back would pay for them again; with --ledgers they are garbage too")
    for path in found.foreign[:MAX_FOREIGN]:
        _line(console, f"left alone, as it is not winnow's: {path}")
    if len(found.foreign) > MAX_FOREIGN:
        _line(console, f"and {len(found.foreign) - MAX_FOREIGN:,} more that are not winnow's")
    for note in found.notes:
        _line(console, f"note: {note}")
    for run in found.at_work:
        _line(console, f"note: run {run.run_id} is at work since {run.began}; --delete refuses until it has ended")
    if found.items:
        versions = "version" if keep == 1 else f"{keep} versions"
        told = "deleted" if deleted else f"nothing was deleted: --delete does it, and keeps the latest {versions}"
        _line(console, told)


def size(count: float) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError


def _groups(items: Iterable[Item]) -> list[tuple[tuple[str, str], list[Item]]]:
    """By stage, kind and reason: shards by their stage, everything else by what it is."""
    order = [Kind.SHARDS, Kind.QUARANTINE, Kind.LEDGER, Kind.RECORDS, Kind.REPORTS, Kind.RUNS, Kind.LEFTOVERS]
    found: dict[tuple[str, str], list[Item]] = {}
    for item in sorted(items, key=lambda one: (order.index(one.kind), one.place)):
        stage = item.place.split("/")[0]
        names = {
            Kind.SHARDS: stage,
            Kind.QUARANTINE: "quarantine",
            Kind.LEDGER: "ledger",
            Kind.RECORDS: "records, manifests",
            Kind.REPORTS: "reports",
            Kind.RUNS: "run summaries",
        }
        found.setdefault((names.get(item.kind, stage), item.reason), []).append(item)
    return list(found.items())


def _line(console: Console, text: str) -> None:
    """Wraps, but for a path or URL, which cannot be copied once it is broken in two."""
    console.print(text, markup=False, highlight=False, soft_wrap="/" in text)
