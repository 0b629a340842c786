"""The rewrite shape: rows that a route chose go through a language engine and come back as new rows.

Request by request the ledger is asked first; only what nobody generated before reaches the engine. The shard's new
rows are then parsed and committed like any other shard, so a new decision or a new gate costs no generation.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from operators.base import Rewriter, uniform
from operators.language.engine import Completion, EngineSettings, FinishReason, Request, Sampling, load_engine
from tasks.aligned import OK, QUARANTINED, REASON, SKIPPED, STATUS, Input, Unit, read_unit
from tasks.annotate import commit_quarantine, counted, finished, local_models, verdicts
from tasks.commit import Footer, adopt, commit_table
from tasks.dataset import Folder, shard_key
from tasks.executor import Beat
from tasks.generation import Generation
from tasks.ledger import Ledger
from tasks.models import resolve
from tasks.pulse import Pulse
from tasks.records import InputShard, Record
from tasks.source import ID
from tasks.store import Store
from tasks.summary import Accounts

REWRITTEN, NOT_CHOSEN, NOT_SAMPLED = "rewritten", "not_chosen", "not_sampled"
REJECTED = "rejected"


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
            key = shard_key(self.folder.fingerprint, unit.name, [one.content_id for one in seen])
            path = self.folder.file(unit.name, key)
            standing = adopt(self.output, path, key)
            if standing is not None:
                return finished(self.output, self.folder, unit.name, standing, seen, began)
            return self._make(table, unit.name, key, path, seen, began)

    def beat(self) -> Beat:
        return self._pulse.beat() if self._pulse is not None else Beat()

    def drain(self) -> None:
        if self._generation is not None:
            self._generation.drain()

    def close(self) -> None:
        if self._generation is not None:
            self._generation.close()

    def _make(
        self, table: pa.Table, name: str, key: str, path: str, seen: list[InputShard], began: float
    ) -> Record | None:
        assert self._generation is not None
        status, reasons = verdicts(table, self.rewriter.reads)
        rows = table.select([ID, *self.rewriter.reads, self.choice.column]).to_pylist()
        plan = {row: self._requests(rows[row], row, status, reasons) for row in range(len(rows)) if status[row] == OK}
        asked = {self._key(one): one for requests in plan.values() for one in requests}
        content = seen[0].content_id.split(":", 1)[0]
        known = self.ledger.lookup(content, asked.keys())
        made = self._generation.complete(
            content, name, {one: request for one, request in asked.items() if one not in known}
        )
        if made is None:
            return None
        answers = {**known, **made}
        new: list[dict[str, Any]] = []
        for row, requests in plan.items():
            if requests:
                pairs = [(request, answers[self._key(request)]) for request in requests]
                new.extend(self._parse(rows[row], row, name, pairs, status, reasons))
        return self._commit(table, new, status, reasons, answers, len(made), name, key, path, seen, began)

    def _requests(self, row: dict[str, Any], place: int, status: list[str], reasons: list[str | None]) -> list[Request]:
        """The requests of a chosen row that the sample holds; sets the row's outcome."""
        if row[self.choice.column] not in self.choice.values:
            status[place] = NOT_CHOSEN
            return []
        try:
            every = self.rewriter.requests(row)
        except Exception as error:
            status[place], reasons[place] = QUARANTINED, f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
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
            status[place], reasons[place] = QUARANTINED, f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
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
        answers: dict[str, Completion],
        generated: int,
        name: str,
        key: str,
        path: str,
        seen: list[InputShard],
        began: float,
    ) -> Record:
        result = pa.Table.from_pylist(new, schema=output_schema(self.rewriter))
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
                "prompt": sum(one.prompt_tokens for one in answers.values()),
                "completion": sum(one.completion_tokens for one in answers.values()),
            },
        )
        quarantine = commit_quarantine(self.output, self.folder, table, name, key, status, reasons)
        footer = Footer.of(self.folder, name, key, accounts, quarantine)
        committed = commit_table(self.output, path, result, footer)
        notes = {"requests": len(answers), "generated": generated}
        return finished(self.output, self.folder, name, committed, seen, began, notes)

    def _key(self, request: Request) -> str:
        return request.content()[:32]


def output_schema(rewriter: Rewriter) -> pa.Schema:
    """Columns of a rewrite's shards: where each row comes from, then what the rewriter adds."""
    origin = [
        pa.field(ID, pa.string()),
        pa.field("parent_id", pa.string()),
        pa.field("source_shard", pa.string()),
        pa.field("source_ordinal", pa.int64()),
    ]
    return pa.schema([*origin, *rewriter.adds])
