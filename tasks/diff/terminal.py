"""A comparison for the terminal: what differs, first what was asked for, then what came of it. Fits 80 columns."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text

from tasks.diff.facts import Changed, CorpusChange, Difference, Names, ShardChanges, StageChange

_A, _B, _SAME, _DIM = "red", "green", "green", "dim"
_HASH = re.compile(r"[0-9a-f]{64}")
LONGEST = 500
"""Characters of one value that are shown; --json has all."""


def print_difference(told: Difference, console: Console) -> None:
    for name, style, side in (("A", _A, told.a), ("B", _B, told.b)):
        console.print(
            Text.assemble((f"{name} ", f"bold {style}"), f"{side.url}@{side.run}", (f"  {side.status}", _DIM)),
            soft_wrap=True,
        )
    if told.same:
        console.print(Text("the same: every stage, every shard, every row", f"bold {_SAME}"))
    _values("parameters", told.parameters, console)
    _values("packages", told.packages, console)
    if told.source is not None and told.source.any:
        _title("input shards", console)
        _shards(told.source, console, "  ")
    if not told.same:
        _stages(told.stages, console)
        _accounts(told, console)
    if told.corpus is not None:
        _corpus(told.corpus, console)
    elif told.corpus_note:
        console.print(Text(f"\n{told.corpus_note}", _DIM))


def _title(name: str, console: Console) -> None:
    console.print(Text(f"\n{name}", "bold"))


def _values(title: str, values: Iterable[Changed], console: Console) -> None:
    found = list(values)
    if found:
        _title(title, console)
        for one in found:
            _beside(one, console, "  ")


def _beside(one: Changed, console: Console, lead: str) -> None:
    """On one line where both fit, else each on its own."""
    first, second = _shown(one.a), _shown(one.b)
    line = f"{lead}{one.name}: {first} → {second}"
    if len(line) <= console.width:
        console.print(Text.assemble(f"{lead}{one.name}: ", (first, _A), " → ", (second, _B)))
        return
    console.print(f"{lead}{one.name}", highlight=False)
    for name, style, value in (("A", _A, first), ("B", _B, second)):
        wrapped = textwrap.wrap(value, max(20, console.width - len(lead) - 4), break_on_hyphens=False) or [""]
        for number, part in enumerate(wrapped):
            console.print(Text(f"{lead}  {name if number == 0 else ' '} {part}", style), soft_wrap=True)


def _shown(value: Any) -> str:
    if value is None:
        return "(none)"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    if _HASH.fullmatch(text):
        return f"sha256 {text[:12]}"
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _stages(stages: Iterable[StageChange], console: Console) -> None:
    _title("stages", console)
    for stage in stages:
        if stage.same:
            console.print(Text(f"  = {stage.stage}", _DIM))
            continue
        why, style = _why(stage)
        line = Text.assemble(("≠ ", "yellow"), (stage.stage, "bold"), (f"  {why}" if why else "", style))
        for number, part in enumerate(line.wrap(console, max(20, console.width - 6))):
            part.rstrip()
            console.print(Text.assemble("  " if number == 0 else "      ", part), soft_wrap=True)
        for cause in stage.causes:
            _beside(cause, console, "      ")


def _why(stage: StageChange) -> tuple[str, str]:
    if stage.a is None or stage.b is None:
        return f"only in {'B' if stage.a is None else 'A'}", ""
    if stage.a == stage.b:
        return f"the same recipe over other inputs: {_counted(stage.shards)}", _DIM
    if not stage.recorded:
        return "another recipe; which, the older winnow did not record", _DIM
    if stage.follows:
        return f"follows from {', '.join(stage.follows)}", _DIM
    return ("", "") if stage.causes else ("another fingerprint: the format of winnow changed", _DIM)


def _counted(shards: ShardChanges | None) -> str:
    if shards is None:
        return "shards unknown"
    kinds = (("added", shards.added), ("removed", shards.removed), ("changed", shards.changed))
    told = [f"{names.count:,} {name}" for name, names in kinds if names.count]
    return f"shards {', '.join(told)}; {shards.same:,} the same"


def _shards(shards: ShardChanges, console: Console, lead: str) -> None:
    kinds = (("only in A", _A, shards.removed), ("only in B", _B, shards.added), ("changed", "yellow", shards.changed))
    for name, style, names in kinds:
        if names.count:
            said = f"{names.count:,} {'shard' if names.count == 1 else 'shards'} {name}: {_named(names)}"
            for line in _wrapped(said, console, lead):
                console.print(Text(line, style))
    console.print(Text(f"{lead}{shards.same:,} the same", _DIM))


def _named(names: Names) -> str:
    more = names.count - len(names.first)
    return ", ".join(names.first) + (f" and {more:,} more" if more else "")


def _wrapped(text: str, console: Console, lead: str) -> list[str]:
    return textwrap.wrap(
        text, console.width, initial_indent=lead, subsequent_indent=f"{lead}  ", break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip


def _accounts(told: Difference, console: Console) -> None:
    """The lines that differ, and the routes with them. Resolve counts what scatter then decides: it is left out."""
    lines = [one for one in told.accounts if one.a != one.b and "-resolve-" not in one.stage]
    rows = [(f"{one.stage}: {one.line.replace('_', ' ')}", one.a, one.b) for one in lines]
    rows += [(f"route {one.name}", one.a, one.b) for one in told.routes if one.a != one.b]
    if rows:
        _title("rows", console)
        _table(rows, console)


def _table(rows: list[tuple[str, Any, Any]], console: Console) -> None:
    cells = [(name, _number(a), _number(b), _delta(a, b)) for name, a, b in rows]
    head = ("", "A", "B", "B - A")
    widths = [max(len(row[place]) for row in [head, *cells]) for place in range(4)]
    for row in [head, *cells]:
        name = f"  {row[0]:<{widths[0]}}"
        line = Text.assemble(name, (f"  {row[1]:>{widths[1]}}", _A), (f"  {row[2]:>{widths[2]}}", _B))
        line.append(f"  {row[3]:>{widths[3]}}")
        console.print(line, soft_wrap=True)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def _delta(a: Any, b: Any) -> str:
    if isinstance(a, float) or isinstance(b, float):
        return f"{b - a:+.4f}" if b != a else "="
    return f"{b - a:+,}" if b != a else "="


def _corpus(corpus: CorpusChange, console: Console) -> None:
    _title("corpus", console)
    rows = [("rows", corpus.rows_a, corpus.rows_b)]
    rows += [(one.name, one.a, one.b) for one in corpus.tokens]
    _table(rows, console)
    console.print(f"\n  {corpus.same:,} rows are in both with the same text", highlight=False)
    kinds: tuple[tuple[str, str, int, dict[str, int], list[str]], ...] = (
        ("in both with another text", "yellow", corpus.changed, {}, corpus.sample_changed),
        ("only in A", _A, corpus.only_a, corpus.only_a_by_origin, corpus.sample_a),
        ("only in B", _B, corpus.only_b, corpus.only_b_by_origin, corpus.sample_b),
    )
    for what, style, count, origins, sample in kinds:
        if count:
            of = f" ({', '.join(f'{n:,} {name}' for name, n in sorted(origins.items()))})" if origins else ""
            console.print(Text(f"  {count:,} {what}{of}", style))
            for line in _wrapped(f"such as {', '.join(sample)}", console, "    "):
                console.print(Text(line, _DIM))
    for line in _wrapped(f"joined {corpus.how}" if corpus.files_read else corpus.how, console, "  "):
        console.print(Text(line, _DIM))
