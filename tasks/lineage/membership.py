"""Whether a row is in the corpus, and if not, which rule of the build left it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from operators.base import uniform
from tasks.aligned import OK, QUARANTINED, SKIPPED
from tasks.build import DROPPED, EMPTY
from tasks.dataset import HIDDEN
from tasks.lineage.facts import CorpusPlace, Place, Step
from tasks.lineage.reading import Tally
from tasks.lineage.search import SOURCE, Layout, corpus_file, corpus_rows
from tasks.rewrite import REJECTED
from tasks.version import Version

IN_CORPUS, CUT, NO_CORPUS, MISSING = "in_corpus", "cut_by_mix", "no_corpus", "missing"
_EVERYTHING = 1.0


class Membership:
    """Applies the build's own rules in the build's order; where they let a row pass, its place is looked up."""

    def __init__(self, version: Version, layout: Layout, tally: Tally) -> None:
        self._version, self._layout, self._tally = version, layout, tally
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._cuts: dict[str, float] | None = None

    def of(
        self,
        space: str,
        row_id: str,
        shard: str,
        ordinal: int | None,
        steps: Sequence[Step],
        route: str | None,
        own: tuple[str, str | None] = (OK, None),
    ) -> CorpusPlace:
        """``shard`` and ``ordinal``: of its source document. ``own``: status and reason of a rewritten row itself."""
        state, reason = own
        if state == REJECTED:
            return CorpusPlace(outcome=REJECTED, why=f"the gate {reason} refused it")
        scatter = self._layout.scatters.get(space)
        if scatter is None or self._version.gather is None:
            return CorpusPlace(outcome=NO_CORPUS, why=f"this run made no corpus: it ended {self._version.run.status}")
        for step in steps:
            if step.status != OK:
                why = f"{step.stage} quarantined it" if step.status == QUARANTINED else f"{step.stage}: {step.status}"
                return CorpusPlace(outcome=SKIPPED, why=why)
        origin = scatter.name.rsplit("-", 1)[-1]
        routes = scatter.summary.identity.get("origin", {}).get("routes")
        if space == SOURCE and (route == "drop" if routes is None else route not in routes):
            return CorpusPlace(outcome=DROPPED, why=f"its route is {route}", origin=origin)
        number, cut = uniform(self._version.seed, "keep", row_id), self._cut(origin)
        told = CorpusPlace(outcome=CUT, why="", origin=origin, number=number, cut=cut)
        if number >= cut:
            why = f"the mix takes {cut:.1%} of what is {origin}: its seeded number {number:.6g} is not below {cut:.6g}"
            return told.model_copy(update={"why": why})
        for row in self._found(row_id):
            if (row["origin"], row["source_shard"], row["source_ordinal"]) == (origin, shard, ordinal):
                return told.model_copy(
                    update={
                        "outcome": IN_CORPUS,
                        "why": "the build kept it",
                        "place": Place(file=row["file"], row=row["row"]),
                        "tagged": row["tagged"],
                        "tokens": row["tokens"],
                    }
                )
        if any(step.values.get("tokens") in (0, None) for step in steps if "tokens" in step.values):
            return told.model_copy(update={"outcome": EMPTY, "why": "it has no text"})
        record = corpus_file(self._version, row_id)
        where = record.path if record is not None else "the corpus"
        return told.model_copy(update={"outcome": MISSING, "why": f"it should be in {where}; run winnow verify"})

    def _found(self, row_id: str) -> list[dict[str, Any]]:
        if row_id not in self._rows:
            self._rows[row_id] = corpus_rows(self._version, row_id, self._tally)
        return self._rows[row_id]

    def _cut(self, origin: str) -> float:
        """What the resolve step came to, in full precision."""
        if self._cuts is None:
            gather = self._version.gather
            assert gather is not None
            path = f"{HIDDEN}/resolved/{gather.name}/{gather.summary.fingerprint}.json"
            known = self._version.store.entry(path) is not None
            self._cuts = orjson.loads(self._version.store.read(path))["cuts"] if known else {}
        return float(self._cuts.get(origin, _EVERYTHING))
