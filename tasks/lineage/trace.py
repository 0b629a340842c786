"""Puts together all that the records and data of one version say of an id."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from operators.base import uniform
from tasks.aligned import OK, QUARANTINED, REASON, STATUS
from tasks.lineage import facts
from tasks.lineage.making import making, models_of, prompt_of
from tasks.lineage.membership import Membership
from tasks.lineage.origin import plain, source_row
from tasks.lineage.reading import Tally, opened, row_at, rows_where
from tasks.lineage.search import SCAN_WITHOUT_ASKING, SOURCE, Found, Layout, corpus_rows, layout, parents, scan
from tasks.records import Record
from tasks.rewrite import NOT_CHOSEN, NOT_SAMPLED, REWRITTEN
from tasks.source import ID, TEXT
from tasks.store import StoreError
from tasks.summary import RunSummary
from tasks.version import StageVersion, Version

MISSING, UNKNOWN = "missing", "unknown"
_NO_VALUE = (ID, STATUS, REASON)


class Nowhere(LookupError):
    """No row of the version has this id. One line that says what was searched."""


def trace(version: Version, row_id: str, shard: str | None = None, everything: bool = False) -> facts.Trace:
    """Every row with this id and what it belongs to.

    ``shard``: look in this source shard alone. ``everything``: read every id even where the corpus told a place.
    Raises Nowhere, StoreError.
    """
    try:
        row_id.encode()
    except UnicodeEncodeError as error:
        raise Nowhere(f"{row_id!r} is not valid UTF-8, and so no id") from error
    tracer = _Tracer(version, layout(version))
    found, search = tracer.find(row_id, shard, everything)
    if not found:
        raise Nowhere(f"{row_id!r} is no id in {version.named}: {search.how}, {search.rows:,} rows, and found nothing")
    spaces = sorted({one.space for one in found})
    asked = " and ".join(f"rewritten row of {space}" if space else "source document" for space in spaces)
    documents = [tracer.document(*place) for place in sorted({tracer.source_of(one) for one in found})]
    search = search.model_copy(update={"bytes_read": tracer.tally.bytes, "requests": tracer.tally.requests})
    run = version.run
    return facts.Trace(
        id=row_id,
        asked=asked,
        url=version.store.url,
        run=run.run_id,
        started=run.started,
        run_status=run.status.value,
        later=_later(version.later),
        search=search,
        documents=documents,
    )


def _later(run: RunSummary | None) -> str:
    return "" if run is None else f"{run.run_id} {run.status.value}"


@dataclass
class _Tracer:
    version: Version
    layout: Layout
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.corpus = Membership(self.version, self.layout, self.tally)

    def find(self, row_id: str, shard: str | None, everything: bool) -> tuple[list[Found], facts.Search]:
        holders = {space: stage for space in self.layout.spaces if (stage := self.layout.holder(space)) is not None}
        if not holders:
            raise StoreError(f"{self.version.named}: this run finished no stage, so there is nothing to trace")
        if shard is not None:
            name = _shard_named(shard, holders[SOURCE].records if SOURCE in holders else {})
            found = self._scanned(holders, row_id, [name])
            rows = sum(stage.records[name].rows for stage in holders.values() if name in stage.records)
            return found, facts.Search(complete=False, how=f"looked in the shard {name} alone", shards=1, rows=rows)
        placed = self._placed(row_id)
        rows = sum(record.rows for stage in holders.values() for record in stage.records.values())
        if placed and rows > SCAN_WITHOUT_ASKING and not everything:
            how = "its place in the corpus is computed from its id; further rows with this id were not looked for"
            return placed, facts.Search(complete=False, how=how, shards=1)
        shards = sum(len(stage.records) for stage in holders.values())
        how = f"read the ids of all {shards:,} shards of {', '.join(stage.name for stage in holders.values())}"
        found = sorted({*placed, *self._scanned(holders, row_id, None)})
        return found, facts.Search(complete=True, how=how, shards=shards, rows=rows)

    def _scanned(self, holders: dict[str, StageVersion], row_id: str, names: Iterable[str] | None) -> list[Found]:
        return [
            Found(space, *place) for space, stage in holders.items() for place in scan(stage, row_id, names, self.tally)
        ]

    def _placed(self, row_id: str) -> list[Found]:
        """Through the corpus: its own place, or that of its parent."""
        found: list[Found] = []
        rewrites = [stage for made in self.layout.rewrites.values() for stage in made]
        for row in corpus_rows(self.version, row_id, self.tally):
            shard, ordinal = row.get("source_shard"), row.get("source_ordinal")
            if row.get("parent_id") is None and shard is not None and ordinal is not None:
                found.append(Found(SOURCE, shard, ordinal))
                continue
            for stage in rewrites:
                if shard in stage.records:
                    found += [Found(stage.name, *place) for place in scan(stage, row_id, [shard], self.tally)]
        return sorted(set(found)) or parents(self.version, rewrites, row_id, self.tally)

    def source_of(self, found: Found) -> tuple[str, int]:
        """(shard, ordinal) of the source document, up through any number of rewrites."""
        shard, ordinal, space = found.shard, found.ordinal, found.space
        while space != SOURCE:
            stage = self.layout.holder(space)
            assert stage is not None
            row = self._row(stage.records[shard], ordinal, ["source_ordinal"])
            ordinal = int(row["source_ordinal"])
            space = next(base for base, made in self.layout.rewrites.items() if stage in made)
        return shard, ordinal

    def document(self, shard: str, ordinal: int) -> facts.Document:
        holder = self.layout.holder(SOURCE)
        assert holder is not None
        row_id = str(self._row(holder.records[shard], ordinal, [ID])[ID])
        steps = self._steps(SOURCE, shard, ordinal)
        decisions = [self._decision(step) for step in steps if "route" in step.values]
        route = next((one.route for one in decisions), None)
        membership = self.corpus.of(SOURCE, row_id, shard, ordinal, steps, route)
        return facts.Document(
            id=row_id,
            shard=shard,
            ordinal=ordinal,
            source=source_row(self.version, holder.records[shard].inputs[0], ordinal, self.tally),
            steps=steps,
            decisions=decisions,
            rewritings=[
                self._rewriting(stage, row_id, shard, ordinal, steps) for stage in self.layout.rewrites.get(SOURCE, [])
            ],
            corpus=membership,
        )

    def _steps(self, space: str, shard: str, ordinal: int) -> list[facts.Step]:
        return [self._step(stage, shard, ordinal) for stage in self.layout.annotations.get(space, [])]

    def _step(self, stage: StageVersion, shard: str, ordinal: int) -> facts.Step:
        summary = stage.summary
        told: dict[str, Any] = {"stage": stage.name, "operator": summary.operator, "version": summary.version}
        told |= {"fingerprint": summary.fingerprint, "models": models_of(summary)}
        record = stage.records.get(shard)
        if record is None:
            failed = (one.error for one in summary.failures if one.shard == shard)
            why = next(failed, "this run did not come to its shard")
            place = facts.Place(file=summary.folder, row=ordinal)
            return facts.Step(**told, status=MISSING, reason=why, values={}, place=place)
        row = self._row(record, ordinal, None)
        return facts.Step(
            **told,
            status=row.get(STATUS, OK),
            reason=row.get(REASON),
            values={name: plain(value) for name, value in row.items() if name not in _NO_VALUE},
            place=facts.Place(file=record.path, row=ordinal),
            quarantine=self._quarantine(record, ordinal) if row.get(STATUS) == QUARANTINED else None,
            attempt=record.attempt,
            retry_of=record.retry_of,
        )

    def _decision(self, step: facts.Step) -> facts.Decision:
        stage = self.version.stages[step.stage]
        conditions = stage.summary.identity.get("config", {}).get("routes")
        if conditions is None:  # a run of an older winnow
            asked = self.version.run.parameters
            conditions = [(name, asked[name]) for name in ("keep", "tag") if name in asked]
        route, reason = step.values.get("route"), step.values.get("route_reason")
        return facts.Decision(stage=step.stage, route=route, reason=reason, conditions=conditions)

    def _rewriting(
        self, stage: StageVersion, row_id: str, shard: str, ordinal: int, steps: list[facts.Step]
    ) -> facts.Rewriting:
        made_with = making(stage.summary, self.version.run)
        record = stage.records.get(shard)
        if record is None:
            failed = (one.error for one in stage.summary.failures if one.shard == shard)
            return facts.Rewriting(
                outcome=UNKNOWN, why=next(failed, "this run did not come to its shard"), making=made_with
            )
        with opened(self.version.store, record.path, self.tally) as file:
            numbers = rows_where(file, "source_ordinal", ordinal)
            held = {number: row_at(file, number) or {} for number in numbers}
        rows = [self._rewritten(stage, record, shard, number, row) for number, row in held.items()]
        choice = made_with.choice
        share = 1.0 if choice.get("share") is None else float(choice["share"])
        if rows:
            parts = {one.part for one in rows if one.part is not None}
            left = sorted(set(range(max(parts, default=0))) - parts)
            drawn = [part for part in left if uniform(made_with.seed, "sample", row_id, part) >= share]
            passed = sum(one.status == OK for one in rows)
            why = f"{len(rows)} {'piece' if len(rows) == 1 else 'pieces'} given to the model, {passed} accepted"
            return facts.Rewriting(outcome=REWRITTEN, why=why, making=made_with, rows=rows, not_drawn=drawn)
        outcome, why = _untouched(steps, {one.path for one in record.inputs}, choice, share)
        lies = self._quarantine(record, ordinal)
        if lies is not None:
            row = self._row(lies, lies.row, ["reason"])
            outcome, why = QUARANTINED, str(row["reason"])
        return facts.Rewriting(outcome=outcome, why=why, making=made_with, quarantine=lies)

    def _rewritten(
        self, stage: StageVersion, record: Record, shard: str, number: int, row: dict[str, Any]
    ) -> facts.Rewritten:
        steps = self._steps(stage.name, shard, number)
        where, state = (shard, row.get("source_ordinal")), row.get(STATUS, OK)
        membership = self.corpus.of(stage.name, str(row[ID]), *where, steps, None, own=(state, row.get(REASON)))
        shown = {*_NO_VALUE, "part", "style", TEXT}
        return facts.Rewritten(
            id=row[ID],
            part=row.get("part"),
            style=row.get("style"),
            status=state,
            reason=row.get(REASON),
            text=row.get(TEXT),
            values={name: plain(value) for name, value in row.items() if name not in shown},
            place=facts.Place(file=record.path, row=number),
            prompt=prompt_of(stage.summary, row.get("style")),
            steps=steps,
            corpus=membership,
        )

    def _quarantine(self, record: Record, ordinal: int) -> facts.Place | None:
        if not record.quarantine:
            return None
        with opened(self.version.store, record.quarantine, self.tally) as file:
            rows = rows_where(file, "ordinal", ordinal)
        return facts.Place(file=record.quarantine, row=rows[0]) if rows else None

    def _row(self, held: Record | facts.Place, ordinal: int, columns: list[str] | None) -> dict[str, Any]:
        path = held.path if isinstance(held, Record) else held.file
        with opened(self.version.store, path, self.tally) as file:
            row = row_at(file, ordinal, columns)
        if row is None:
            raise StoreError(f"{self.version.store.url_of(path)}: has no row {ordinal}; run winnow verify")
        return row


def _untouched(steps: list[facts.Step], inputs: set[str], choice: dict[str, Any], share: float) -> tuple[str, str]:
    """Why a rewrite made nothing of a document, as :mod:`tasks.rewrite` decides it."""
    for step in steps:
        if step.place.file in inputs and step.status != OK:
            return step.status if step.status == MISSING else "skipped", f"{step.stage} {step.status} it"
    column, wanted = str(choice.get("column")), choice.get("values")
    value = next((step.values[column] for step in steps if column in step.values), None)
    if wanted is not None and value not in wanted:
        return NOT_CHOSEN, f"only {column} {' or '.join(wanted)} is rewritten, and its {column} is {value}"
    if share < 1:
        return NOT_SAMPLED, f"none of its pieces was drawn at share {share:g}, or none was long enough"
    return NOT_SAMPLED, "none of its pieces was long enough"


def _shard_named(name: str, records: dict[str, Record]) -> str:
    """The shard of this name, or the one whose name ends in it."""
    if name in records:
        return name
    ending = sorted(one for one in records if one.endswith(f"/{name}") or one.rsplit("/", 1)[-1].startswith(f"{name}."))
    if len(ending) == 1:
        return ending[0]
    known = ", ".join(sorted(records)[:3])
    raise StoreError(f"--shard {name}: no source shard has this name; there are {len(records):,}, such as {known}")
