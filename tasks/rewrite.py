"""The rewrite shape: rows that a route chose go through a language engine and come back as new rows.

Request by request the ledger is asked first; only what nobody generated before reaches the engine. The shard's new
rows are then parsed and committed like any other shard, so a new decision or a new gate costs no generation.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from operators.base import Rewriter, uniform
from operators.language.engine import Completion, EngineSettings, FinishReason, Request, Sampling, load_engine
from tasks.aligned import OK, QUARANTINED, REASON, SKIPPED, STATUS, Input, Unit, read_unit
from tasks.annotate import finished, local_models, verdicts
from tasks.attempt import Attempt, standing_table
from tasks.commit import Footer, adopt, commit_table
from tasks.credentials import line_of
from tasks.dataset import Folder
from tasks.executor import Beat
from tasks.generation import Generation
from tasks.ledger import Ledger
from tasks.models import resolve
from tasks.pulse import Pulse
from tasks.quarantine import RECOVERED, commit_quarantine, counted, quarantined_rows, recovered
from tasks.records import InputShard, Record
from tasks.source import ID
from tasks.store import Store
from tasks.summary import Accounts

REWRITTEN, NOT_CHOSEN, NOT_SAMPLED = "rewritten", "not_chosen", "not_sampled"
REJECTED = "rejected"
_SETTLED = "settled"  # a row that is not retried: the standing shard holds what became of it


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows are rewritten: those that ``column`` names one of ``values``; of their pieces, a seeded ``share``."""

    column: str
    values: tuple[str, ...]
    share: float
    seed: int


@dataclass
class RewriteWorker:
    """Carries out one rewriter over shards, two at a time so that the engine stays full between them."""

    rewriter: Rewriter
    engine: EngineSettings
    sampling: Sampling
    choice: Choice
    inputs: tuple[Input, ...]
    output: Store
    folder: Folder
    ledger: Ledger
    concurrency: int = 2
    _pulse: Pulse | None = field(default=None, repr=False)
    _generation: Generation | None = field(default=None, repr=False)

    def setup(self) -> None:
        began = time.monotonic()
        self._pulse = pulse = Pulse()
        self.rewriter.setup(local_models(self.rewriter.models()))
        engine = load_engine(self.engine, resolve(self.engine.model).path)
        self._generation = Generation(
            engine, self.sampling, self.ledger, lambda tokens: pulse.step(rows=1, tokens=tokens)
        )
        self._pulse.was_set_up(time.monotonic() - began)

    def process(self, unit: Unit) -> Record | None:
        assert self._pulse is not None
        began = time.monotonic()
        with self._pulse.busy():
            table, seen = read_unit(self.inputs, unit, [*self.rewriter.reads, self.choice.column])
            self._pulse.step()
            attempt = Attempt.at(unit, self.folder, seen)
            standing = adopt(self.output, self.folder.file(unit.name, attempt.key), attempt.key)
            if standing is not None:
                notes = recovered(unit.again, standing.footer.accounts)
                return finished(self.output, self.folder, unit.name, standing, seen, began, notes, attempt)
            return self._make(table, unit, attempt, seen, began)

    def beat(self) -> Beat:
        if self._pulse is None:
            return Beat()
        return replace(self._pulse.beat(), spent=self._generation.spent() if self._generation is not None else {})

    def drain(self) -> None:
        if self._generation is not None:
            self._generation.drain()

    def close(self) -> None:
        if self._generation is not None:
            self._generation.close()

    def _make(
        self, table: pa.Table, unit: Unit, attempt: Attempt, seen: list[InputShard], began: float
    ) -> Record | None:
        assert self._generation is not None
        name = unit.name
        status, reasons = verdicts(table, self.rewriter.reads)
        before: dict[int, str] = {}
        if unit.again is not None:
            before = quarantined_rows(self.output, unit.again)
            status = [state if row in before else _SETTLED for row, state in enumerate(status)]
        rows = table.select([ID, *self.rewriter.reads, self.choice.column]).to_pylist()
        plan = {row: self._requests(rows[row], row, status, reasons) for row in range(len(rows)) if status[row] == OK}
        asked = {self._key(one): one for requests in plan.values() for one in requests}
        content = seen[0].content_id.split(":", 1)[0]
        known = self.ledger.lookup(content, asked.keys(), name)
        made = self._generation.complete(
            content, name, {one: request for one, request in asked.items() if one not in known}
        )
        if made is None:
            return None
        answers = {**known, **made}
        paid: dict[str, Completion] = {}
        new: list[dict[str, Any]] = []
        for row, requests in plan.items():
            if requests:
                pairs = [(request, answers[self._key(request)]) for request in requests]
                new.extend(self._parse(rows[row], row, name, pairs, status, reasons))
                if status[row] == REWRITTEN:
                    paid.update((self._key(request), answer) for request, answer in pairs)
        notes = {"requests": len(answers), "generated": len(made)}
        return self._commit(table, new, status, reasons, before, paid, notes, unit, attempt, seen, began)

    def _requests(self, row: dict[str, Any], place: int, status: list[str], reasons: list[str | None]) -> list[Request]:
        """The requests of a chosen row that the sample holds; sets the row's outcome."""
        if row[self.choice.column] not in self.choice.values:
            status[place] = NOT_CHOSEN
            return []
        assert self._pulse is not None
        self._pulse.step()  # a document of 10 MB takes its time to cut
        try:
            every = self.rewriter.requests(row)
        except Exception as error:
            status[place], reasons[place] = QUARANTINED, f"{type(error).__name__}: {line_of(error, 300)}"[:300]
            return []
        choice = self.choice
        kept = [one for one in every if uniform(choice.seed, "sample", row[ID], one.part) < choice.share]
        status[place] = REWRITTEN if kept else NOT_SAMPLED
        return kept

    def _parse(
        self,
        row: dict[str, Any],
        place: int,
        name: str,
        pairs: list[tuple[Request, Completion]],
        status: list[str],
        reasons: list[str | None],
    ) -> list[dict[str, Any]]:
        failed = [one for _, one in pairs if one.finish_reason is FinishReason.ERROR]
        if failed:
            status[place], reasons[place] = QUARANTINED, failed[0].error
            return []
        try:
            new = self.rewriter.parse(row, pairs)
        except Exception as error:
            status[place], reasons[place] = QUARANTINED, f"{type(error).__name__}: {line_of(error, 300)}"[:300]
            return []
        return [
            {
                **one,
                ID: self.rewriter.row_id(row[ID], one),
                "parent_id": row[ID],
                "source_shard": name,
                "source_ordinal": place,
            }
            for one in new
        ]

    def _commit(
        self,
        table: pa.Table,
        new: list[dict[str, Any]],
        status: list[str],
        reasons: list[str | None],
        before: dict[int, str],
        paid: dict[str, Completion],
        notes: dict[str, int],
        unit: Unit,
        attempt: Attempt,
        seen: list[InputShard],
        began: float,
    ) -> Record:
        """``before``: reasons of the rows that are retried. ``paid``: the completions of rows that were rewritten."""
        schema = output_schema(self.rewriter)
        result = pa.Table.from_pylist(new, schema=schema)
        states = result.column(STATUS).to_pylist()
        why = result.column(REASON).to_pylist()
        accounts = Accounts(
            rows_in=len(status),
            outcomes=dict(sorted(Counter(status).items())),
            rows_out=result.num_rows,
            outputs=dict(sorted(Counter(states).items())),
            reasons={
                **counted(reasons, status, QUARANTINED),
                **counted(reasons, status, SKIPPED),
                **counted(why, states, REJECTED),
            },
            tokens={
                "prompt": sum(one.prompt_tokens for one in paid.values()),
                "completion": sum(one.completion_tokens for one in paid.values()),
            },
        )
        if unit.again is not None:
            accounts = _after(unit.again.accounts, accounts, before)
            notes |= recovered(unit.again, accounts)
            if not notes[RECOVERED]:
                return unit.again.model_copy(update={"notes": notes, "adopted": True})
            stood = standing_table(self.output, unit.again).cast(schema)
            result = pa.concat_tables([stood, result]).sort_by("source_ordinal")  # stable: parts keep their order
        name, key = unit.name, attempt.key
        quarantine = commit_quarantine(self.output, self.folder, table, name, key, status, reasons)
        footer = Footer.of(self.folder, name, key, accounts, quarantine)
        committed = commit_table(self.output, self.folder.file(name, key), result, footer)
        return finished(self.output, self.folder, name, committed, seen, began, notes, attempt)

    def _key(self, request: Request) -> str:
        return request.content()[:32]


def _after(stood: Accounts, again: Accounts, reasons: dict[int, str]) -> Accounts:
    """Accounts of a shard after a retry: what stood, without its quarantined rows, and those as they are now."""
    settled = Counter(stood.reasons)
    settled.subtract(reasons.values())
    outcomes = {name: rows for name, rows in stood.outcomes.items() if name != QUARANTINED}
    outcomes |= {name: outcomes.get(name, 0) + rows for name, rows in again.outcomes.items() if name != _SETTLED}
    return Accounts(
        rows_in=stood.rows_in,
        outcomes=dict(sorted(outcomes.items())),
        rows_out=stood.rows_out + again.rows_out,
        outputs=_sum(stood.outputs, again.outputs),
        reasons=_sum(settled, again.reasons),
        tokens={name: stood.tokens.get(name, 0) + count for name, count in again.tokens.items()},
    )


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name in sorted({*one, *other}) if (count := one.get(name, 0) + other.get(name, 0)) > 0}


def output_schema(rewriter: Rewriter) -> pa.Schema:
    """Columns of a rewrite's shards: where each row comes from, then what the rewriter adds."""
    origin = [
        pa.field(ID, pa.string()),
        pa.field("parent_id", pa.string()),
        pa.field("source_shard", pa.string()),
        pa.field("source_ordinal", pa.int64()),
    ]
    return pa.schema([*origin, *rewriter.adds])
