"""The accounts as a picture: nodes and links of :mod:`tasks.report.flow` laid out and drawn as SVG, widths to scale.

The SVG scales with the page and is coloured by the page's style sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from tasks.report.facts import Fate
from tasks.report.flow import Flow, Node, flow_of
from tasks.report.numbers import exact, readable, share, short
from tasks.summary import RunSummary

MIN_HEIGHT = 2.0
"""Pixels of the thinnest flow: below this a flow could not be seen."""


@dataclass(frozen=True)
class Size:
    """Measures of a drawing in pixels; ``margin`` is kept on the right for the last labels."""

    name: str
    width: int
    rows_height: int
    margin: int
    bar: int
    text: int


WIDE = Size("wide", 1000, 280, 150, 12, 14)
NARROW = Size("narrow", 380, 250, 78, 8, 11)


def _lay_out(flow: Flow, size: Size) -> tuple[float, bool]:
    """Sets y and height of every node; returns the height of the drawing and whether a flow was thickened."""
    columns = [[n for n in flow.nodes.values() if n.column == c] for c in range(4)]
    scale = size.rows_height / max(sum(n.value for n in column) for column in columns)
    thickened = False
    for column in columns:
        y = 0.0
        for node in column:
            node.height = max(MIN_HEIGHT, node.value * scale)
            thickened = thickened or (node.height > node.value * scale and bool(node.label))
            needed = size.text * 2.6 if node.label else 0  # two lines of label
            space = max(node.height, needed)
            node.y = y + (space - node.height) / 2
            y += space + (size.text if node.label else size.text * 0.7)
    for column in columns[1:]:  # slide each column as a whole so that its ribbons run level
        weight = shift = 0.0
        for link in flow.links:
            for a, b in pairwise(link.path):
                start, end = flow.nodes[a], flow.nodes[b]
                if end in column and not link.reads:
                    weight += link.value_from
                    shift += link.value_from * (start.y + start.height / 2 - end.y - end.height / 2)
        for node in column:
            node.y += shift / weight if weight else 0.0
    top = min(min(n.y, n.y + n.height / 2 - size.text * 1.4) for n in flow.nodes.values())
    for node in flow.nodes.values():
        node.y -= top
    return max(max(n.y + n.height, n.y + n.height / 2 + size.text * 1.6) for n in flow.nodes.values()), thickened


def _ribbons(flow: Flow, x: Sequence[float], size: Size) -> list[Markup]:
    """Each link as one closed path. Ribbons share a bar's height in the order in which they were added."""
    left: dict[tuple[str, str], float] = {}
    scale = {n.key: n.height / n.value for n in flow.nodes.values() if n.value}
    drawn = []
    for link in flow.links:
        upper, lower = [], []
        last = len(link.path) - 1
        for index, key in enumerate(link.path):
            node = flow.nodes[key]
            value = link.value_to if index == last else link.value_from
            thick = min(node.height, max(MIN_HEIGHT, value * scale.get(key, 0.0)))
            side = "in" if index else "reads" if link.reads else "out"
            y = node.y + min(left.get((key, side), 0.0), node.height - thick)
            left[key, side] = left.get((key, side), 0.0) + thick
            edge = x[node.column] + (0 if index else size.bar)
            upper.append((edge, y))
            lower.append((edge, y + thick))
        kind = "reads" if link.reads else "flow"
        title = f"{flow.nodes[link.path[0]].label} to {flow.nodes[link.path[-1]].label}"
        drawn.append(
            Markup('<path class="{} t-{}" d="{}Z"><title>{}</title></path>').format(
                kind, link.tone.value, _curve(upper, "M") + _curve(lower[::-1], "L"), title
            )
        )
    return drawn


def _curve(points: Sequence[tuple[float, float]], start: str) -> str:
    parts = [f"{start}{points[0][0]:.1f} {points[0][1]:.1f}"]
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (x0 + x1) / 2
        parts.append(f"C{middle:.1f} {y0:.1f} {middle:.1f} {y1:.1f} {x1:.1f} {y1:.1f}")
    return "".join(parts)


def _words(flow: Flow) -> str:
    documents = flow.nodes["source"].value
    parts = [f"{exact(documents)} source documents"]
    for node in flow.nodes.values():
        if node.label and node.column:
            of = f" ({share(node.value, documents)} of the source documents)" if node.column == 1 else ""
            parts.append(f"{node.label}: {exact(node.value)}{of}")
    return ". ".join(parts) + "."


def picture(summary: RunSummary, size: Size) -> Markup:
    """The flow as one ``<svg>`` of ``size.width`` units, that scales with the page."""
    flow = flow_of(summary)
    if not flow.nodes:
        return Markup('<p class="nothing">No documents came in, so there is no flow to draw.</p>')
    height, thickened = _lay_out(flow, size)
    used = max(node.column for node in flow.nodes.values())
    step = (size.width - size.margin - size.bar) / 3
    x = [step * column if used > 1 else step * 1.5 * column for column in range(4)]
    ribbons = _ribbons(flow, x, size)
    marks = [_mark(flow, node, x[node.column], size) for node in flow.nodes.values() if node.label]
    note = f" Flows too small to be drawn to scale are {MIN_HEIGHT:.0f} pixels thick." if thickened else ""
    return Markup(
        '<svg class="sankey {0}" viewBox="0 -2 {1} {2:.0f}" role="img" aria-labelledby="flow-{0}-t flow-{0}-d" '
        'font-size="{3}"><title id="flow-{0}-t">The accounts as a flow</title>'
        '<desc id="flow-{0}-d">{4}{5}</desc>{6}{7}</svg>'
    ).format(
        size.name, size.width, height + 6, size.text, _words(flow), note,
        Markup("").join(ribbons), Markup("").join(marks),
    )  # fmt: skip


def _mark(flow: Flow, node: Node, x: float, size: Size) -> Markup:
    """A node's bar, in the colours of what flows into it where it has none of its own, with its two lines of text."""
    wide = size is WIDE
    y, bars = node.y, Markup("")
    for tone, height in _segments(flow, node):
        bars += Markup('<rect class="t-{}" x="{:.1f}" y="{:.1f}" width="{}" height="{:.1f}"/>').format(
            tone, x, y, size.bar, height
        )
        y += height
    count = readable(node.value, 6) if wide else short(node.value)
    if node.column == 1 and wide:
        count += f" · {share(node.value, flow.nodes['source'].value)}"
    return Markup(
        '<g><title>{}: {}{}</title>{}<text x="{:.1f}" y="{:.1f}"><tspan class="name">{}</tspan>'
        '<tspan class="count" x="{:.1f}" dy="1.2em">{}</tspan></text></g>'
    ).format(
        node.label, exact(node.value), f" ({node.note})" if node.note else "", bars,
        x + size.bar + 6, node.y + node.height / 2 - size.text * 0.2,
        node.label if wide else node.brief or node.label, x + size.bar + 6, count,
    )  # fmt: skip


def _segments(flow: Flow, node: Node) -> list[tuple[str, float]]:
    incoming = [link for link in flow.links if link.path[-1] == node.key]
    total = sum(link.value_to for link in incoming)
    if node.tone is not Fate.MIXED or not total:
        return [(node.tone.value, node.height)]
    return [(link.tone.value, node.height * link.value_to / total) for link in incoming]
