"""A trace as a tree for the terminal: what happened to the document, from its source down to the corpus."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.text import Text

from tasks.aligned import OK, QUARANTINED
from tasks.build import DROPPED
from tasks.lineage.facts import CorpusPlace, Document, Making, Place, Rewriting, Rewritten, Source, Step, Trace
from tasks.lineage.membership import CUT, IN_CORPUS
from tasks.rewrite import REWRITTEN

SHOWN = 130
"""Characters of a text that are shown; --json has all."""
_BRIEFLY = {CUT: "left out by the mix", DROPPED: "dropped"}
_GOOD, _BAD, _LEFT, _DIM = "green", "red", "yellow", "dim"


@dataclass
class Tree:
    """Rich's own tree cuts a line that is too long; in this one it runs on where ``whole``, else it is wrapped."""

    label: Text
    whole: bool = False
    below: list[Tree] = field(default_factory=list)

    def add(self, label: Text, whole: bool = False) -> Tree:
        self.below.append(Tree(label, whole))
        return self.below[-1]

    def print(self, console: Console, first: str = "", rest: str = "") -> None:
        room = max(20, console.width - len(first))
        lines = [self.label] if self.whole else list(self.label.wrap(console, room))
        for number, line in enumerate(lines):
            line.rstrip()
            console.print(Text.assemble((first if number == 0 else rest, _DIM), line), soft_wrap=True)
        for number, one in enumerate(self.below):
            last = number == len(self.below) - 1
            one.print(console, rest + ("└── " if last else "├── "), rest + ("    " if last else "│   "))


def print_trace(trace: Trace, console: Console) -> None:
    """Plain text without escape codes where the console is a file. Long paths are never broken in two."""
    head = Text.assemble((trace.id, "bold"), f"  {trace.asked}")
    console.print(head, soft_wrap=True)
    console.print(Text(f"as run {trace.run} ({trace.run_status}) left it in {trace.url}", _DIM), soft_wrap=True)
    if trace.later:
        console.print(Text(f"a newer run did not end well: {trace.later}; see it with URL@RUN_ID", _LEFT))
    if len(trace.documents) > 1:
        console.print(Text(f"{len(trace.documents)} source documents have this id:", "bold"))
    for document in trace.documents:
        console.print()
        _document(document, trace.id).print(console)
    console.print()
    console.print(Text(_searched(trace), _DIM))
    console.print(Text("Rows count from 0.", _DIM))


def _searched(trace: Trace) -> str:
    search = trace.search
    what = f"{search.how[:1].upper()}{search.how[1:]}"
    more = "" if search.complete or "alone" in search.how else " (--all does)"
    return f"{what}{more}; {_size(search.bytes_read)} read."


def _document(document: Document, asked: str) -> Tree:
    tree = Tree(Text.assemble((document.id, "bold"), "  ", _verdict(document)))
    _source(tree, document.source)
    for step in document.steps:
        _step(tree, step)
    for decision in document.decisions:
        _decision(tree, document, decision)
    for rewriting in document.rewritings:
        _rewriting(tree, rewriting, asked)
    _corpus(tree, document.corpus)
    return tree


def _verdict(document: Document) -> Text:
    made = sum(row.corpus.outcome == IN_CORPUS for one in document.rewritings for row in one.rows)
    rows = f", {made} rewritten {'row' if made == 1 else 'rows'} of it in the corpus" if made else ""
    if document.corpus.outcome == IN_CORPUS:
        return Text(f"in the corpus{' with harm tags' if document.corpus.tagged else ''}{rows}", _GOOD)
    colour = _BAD if any(step.status == QUARANTINED for step in document.steps) else _LEFT
    why = _BRIEFLY.get(document.corpus.outcome, document.corpus.why)
    return Text(f"not in the corpus{' itself' if made else ''}: {why}{rows}", colour)


def _source(tree: Tree, source: Source) -> None:
    node = tree.add(_line("source", f"{source.url}, row {source.row}"), whole=True)
    if source.why:
        node.add(Text(f"not shown: {source.why}", _LEFT))
        return
    told = [str(value) for name, value in source.values.items() if name != "text" and value is not None]
    if told:
        node.add(Text(" · ".join(told)))
    if source.values.get("text") is not None:
        node.add(_quoted(source.values["text"]))


def _step(tree: Tree, step: Step) -> None:
    values = [(name, value) for name, value in step.values.items() if not name.startswith("route")]
    if step.status != OK:
        node = tree.add(
            _line(step.stage, f"{step.status}: {step.reason}", _BAD if step.status == QUARANTINED else _DIM)
        )
        if step.quarantine is not None:
            node.add(_at("its bytes lie in", step.quarantine), whole=True)
    elif values:
        told = "  ".join(f"{name} = {_short(value)}" for name, value in values)
        told += f"  (after {step.attempt} {'retry' if step.attempt == 1 else 'retries'})" if step.attempt else ""
        tree.add(_line(step.stage, told))


def _decision(tree: Tree, document: Document, decision: Any) -> None:
    if decision.route is None:
        return
    met = next((sql for name, sql in decision.conditions if name == decision.route and sql == decision.reason), None)
    because = f"because {decision.reason}" if met else f"no condition was met: {decision.reason}"
    node = tree.add(_line("decision", Text.assemble((decision.route, "bold"), f", {because}")))
    for name, sql in decision.conditions:
        if met and name == decision.route:
            break
        node.add(Text(f"not met, {name}: {sql}", _DIM))


def _rewriting(tree: Tree, one: Rewriting, asked: str) -> None:
    colour = "" if one.outcome == REWRITTEN else _BAD if one.outcome == QUARANTINED else _DIM
    what = one.why if one.outcome == REWRITTEN else f"{one.outcome.replace('_', ' ')}: {one.why}"
    node = tree.add(_line(one.making.stage, what, colour))
    if one.quarantine is not None:
        node.add(_at("its bytes lie in", one.quarantine), whole=True)
    if not one.rows:
        return
    node.add(Text(_making(one.making), _DIM))
    for row in one.rows:
        _rewritten(node, row, bold=row.id == asked)
    if one.not_drawn:
        parts = f"piece{'s' if len(one.not_drawn) > 1 else ''} {', '.join(str(part) for part in one.not_drawn)}"
        node.add(Text(f"left out by the sample of {one.making.choice['share']:.0%}: {parts}", _DIM))


def _making(made: Making) -> str:
    sampling = made.sampling
    warm = sampling.get("temperature") or 0
    drawn = "greedy" if not warm else f"temperature {warm:g}, seed {made.seed}"
    weights = f" (weights {made.weights[:12]})" if made.weights else ""
    engine = " ".join(one for one in (made.engine, made.dtype) if one)
    return f"by {made.model}{weights}; {engine}, {drawn}, at most {sampling.get('max_tokens')} tokens"


def _rewritten(tree: Tree, row: Rewritten, bold: bool) -> None:
    if row.status == OK:
        state = Text("accepted, " + ("in the corpus" if row.corpus.outcome == IN_CORPUS else "not in the corpus"))
        state.stylize(_GOOD if row.corpus.outcome == IN_CORPUS else _LEFT)
    else:
        state = Text(f"{row.status} by the gate {row.reason}", _BAD)
    node = tree.add(Text.assemble((row.id, "bold" if bold else ""), "  ", state))
    told = []
    if row.prompt is not None:
        told.append(f"prompt {row.prompt.file} ({row.prompt.sha256[:12]})")
    if row.values.get("piece_start") is not None:
        told.append(f"characters {row.values['piece_start']} to {row.values['piece_end']} of the source")
    if told:
        node.add(Text(", ".join(told)))
    if row.text is not None:
        node.add(_quoted(row.text))
    elif row.values.get("raw") is not None:
        node.add(Text.assemble(("the model wrote: ", _DIM), _quoted(row.values["raw"])))
    node.add(_at("lies in", row.place), whole=True)
    if row.status == OK:
        _corpus(node, row.corpus)


def _corpus(tree: Tree, place: CorpusPlace) -> None:
    if place.place is None:
        tree.add(_line("corpus", f"{place.outcome.replace('_', ' ')}: {place.why}", _LEFT))
        return
    tags = "with harm tags" if place.tagged else "without tags"
    line = _line("corpus", f"{place.place.file}, row {place.place.row}")
    tree.add(line, whole=True).add(Text(f"{place.tokens} tokens, {tags}"))


def _line(name: str, what: str | Text, style: str = "") -> Text:
    return Text.assemble((f"{name}  ", "cyan"), what if isinstance(what, Text) else (what, style))


def _at(what: str, place: Place) -> Text:
    return Text(f"{what} {place.file}, row {place.row}", _DIM)


def _quoted(text: str) -> Text:
    flat = " ".join(str(text).split())
    return Text(f"“{flat if len(flat) <= SHOWN else flat[: SHOWN - 1] + '…'}”", "italic")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:59] + "…"


def _size(count: int) -> str:
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" or value >= 10 else f"{value:.1f} {unit}"
