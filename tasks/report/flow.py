"""The accounts as nodes and links: source documents -> routes -> rewritten rows -> corpus, all counted in rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tasks.report.facts import Fate, fate, is_synthetic, last_build, passed_by
from tasks.report.numbers import exact
from tasks.summary import RunSummary, Shape, StageSummary

MAX_ROUTES = 12
_PAST = {"keep": "Kept", "tag": "Tagged", "drop": "Dropped"}
_ONWARD = (Fate.KEPT, Fate.TAGGED, Fate.OTHER)


@dataclass
class Node:
    """One bar. ``label`` empty: a place that a ribbon passes through, not drawn."""

    key: str
    column: int
    value: float
    tone: Fate
    label: str = ""
    brief: str = ""
    note: str = ""
    y: float = 0.0
    height: float = 0.0


@dataclass(frozen=True)
class Link:
    """A ribbon through the nodes in ``path``. ``reads``: rows are read again by a rewrite and not taken away."""

    path: tuple[str, ...]
    value_from: float
    value_to: float
    tone: Fate
    reads: bool = False


@dataclass
class Flow:
    nodes: dict[str, Node] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)

    def add(self, node: Node) -> Node:
        self.nodes[node.key] = node
        return node


def flow_of(summary: RunSummary) -> Flow:
    """Nodes and links in rows. Column 0 the source, 1 routes, 2 rewritten rows, 3 the corpus and what it left out."""
    flow = Flow()
    documents = summary.stages[0].accounts.rows_in if summary.stages else sum(summary.routes.values())
    if documents <= 0:
        return flow
    flow.add(Node("source", 0, documents, Fate.MIXED, "Source documents", "Sources"))
    routes = _routes(summary, documents)
    for node in routes:
        flow.add(node)
        flow.links.append(Link(("source", node.key), node.value, node.value, node.tone))
    onward = [node for node in routes if node.tone in _ONWARD]
    accepted = [piece for stage in summary.stages if (piece := _rewrite(flow, stage, onward)) is not None]
    build = last_build(summary)
    if build is not None and build.accounts.rows_out:
        _corpus(flow, build, accepted, onward)
    return flow


def _routes(summary: RunSummary, documents: int) -> list[Node]:
    """What became of the documents; rows without a route are quarantined ones, or wait for the rest of the run."""
    held = max((s.accounts.quarantined for s in summary.stages if s.shape is Shape.ANNOTATE), default=0)
    routes = {name: count for name, count in summary.routes.items() if count > 0}
    if not routes and documents > held:
        routes = {"annotated": documents - held}
    nodes = [
        Node(f"route {name}", 1, count, tone, _title(name))
        for name, count in sorted(routes.items(), key=lambda item: (-item[1], item[0]))
        # a route named after a rewrite holds kept documents that are also rewritten
        for tone in (Fate.KEPT if fate(name) is Fate.SYNTHETIC else fate(name),)
    ]
    nodes = [node for tone in Fate for node in _few([n for n in nodes if n.tone is tone])]
    rest = documents - sum(routes.values())
    known = any(node.tone is Fate.QUARANTINED for node in nodes)
    quarantined = 0 if known else min(max(rest, 0), held)
    nodes.append(Node("quarantined", 1, quarantined, Fate.QUARANTINED, "Quarantined"))
    nodes.append(Node("unrouted", 1, rest - quarantined, Fate.DROPPED, "Not routed yet", "Not routed"))
    order = list(Fate)
    return sorted((n for n in nodes if n.value > 0), key=lambda n: (order.index(n.tone), -n.value))


def _few(nodes: list[Node]) -> list[Node]:
    """Of nodes of one tone, the largest, and the others as one."""
    if len(nodes) <= MAX_ROUTES:
        return nodes
    rest = nodes[MAX_ROUTES - 1 :]
    tone, label = rest[0].tone, f"{len(rest)} other routes"
    return [*nodes[: MAX_ROUTES - 1], Node(f"other {tone.value}", 1, sum(n.value for n in rest), tone, label)]


def _rewrite(flow: Flow, stage: StageSummary, onward: Sequence[Node]) -> Node | None:
    accounts = stage.accounts
    if stage.shape is not Shape.REWRITE or not accounts.rows_out or not onward:
        return None
    rejected = sum(count for name, count in accounts.outputs.items() if fate(name) in (Fate.REJECTED, Fate.DROPPED))
    read = sum(n for name, n in accounts.outcomes.items() if not passed_by(name) and fate(name) is not Fate.QUARANTINED)
    stem = stage.name[:6].lower()
    source = next((node for node in onward if stem in node.key.lower()), onward[0])
    read = min(read or accounts.rows_in, int(source.value))
    pieces = accounts.rows_out
    name = _title(stage.name)
    good = Node(f"{name} accepted", 2, pieces - rejected, Fate.SYNTHETIC, f"{name}: accepted", "Accepted")
    bad = Node(f"{name} rejected", 2, rejected, Fate.REJECTED, f"{name}: rejected", "Rejected")
    for node in (bad, good):
        if node.value:
            node.note = f"of {exact(pieces)} pieces from {exact(read)} documents"
            flow.add(node)
            part = read * node.value / pieces
            flow.links.append(Link((source.key, node.key), part, node.value, node.tone, reads=True))
    return good if good.value else None


def _corpus(flow: Flow, build: StageSummary, accepted: Sequence[Node], onward: Sequence[Node]) -> None:
    out = build.accounts.rows_out
    named = sum(count for name, count in build.accounts.outputs.items() if is_synthetic(name))
    made = sum(node.value for node in accepted)
    synthetic = min(named or min(made, out), out) if made else 0
    flow.add(Node("corpus", 3, out, Fate.MIXED, "Corpus"))
    _into_corpus(flow, accepted, synthetic)
    tagged = [node for node in onward if node.tone is Fate.TAGGED]
    marked = sum(count for name, count in build.accounts.outputs.items() if fate(name) is Fate.TAGGED)
    if tagged and marked:
        _into_corpus(flow, [node for node in onward if node not in tagged], out - synthetic - marked)
        _into_corpus(flow, tagged, marked)
    else:
        _into_corpus(flow, onward, out - synthetic)


def _into_corpus(flow: Flow, sources: Sequence[Node], rows: float) -> None:
    """Shares ``rows`` of the corpus over its sources in proportion to their size; the rest was left out by the mix."""
    total = sum(node.value for node in sources)
    if not total:
        return
    for node in sources:
        taken = node.value * min(1.0, rows / total)
        through = []
        if node.column < 2:
            through = [flow.add(Node(f"{node.key} passes", 2, taken, node.tone)).key]
        if taken:
            flow.links.append(Link((node.key, *through, "corpus"), taken, rows * node.value / total, node.tone))
        left = node.value - taken
        if left >= 0.5:
            if "left" not in flow.nodes:
                flow.add(Node("left", 3, 0, Fate.DROPPED, "Left out by the mix", "Left out"))
            flow.nodes["left"].value += left
            if node.column < 2:
                through = [flow.add(Node(f"{node.key} left passes", 2, left, node.tone)).key]
            flow.links.append(Link((node.key, *through, "left"), left, left, Fate.DROPPED))


def _title(name: str) -> str:
    words = _PAST.get(name, name.replace("_", " ").strip() or "(no name)")
    words = words if len(words) <= 24 else words[:23] + "…"
    return words[0].upper() + words[1:]
