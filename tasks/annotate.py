"""The annotate shape: one shard in, one aligned shard of new columns out, every row accounted for."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.base import Annotator
from tasks.aligned import OK, QUARANTINED, REASON, SKIPPED, STATUS, UPSTREAM, Input, Unit, read_unit
from tasks.attempt import Attempt, standing_table
from tasks.commit import Footer, adopt, commit_table
from tasks.credentials import line_of
from tasks.dataset import Folder
from tasks.executor import Beat
from tasks.models import resolve
from tasks.pulse import Pulse
from tasks.quarantine import RECOVERED, commit_quarantine, counted, recovered
from tasks.records import InputShard, Record, write_record
from tasks.source import ID, PROBLEM
from tasks.store import Store
from tasks.summary import Accounts

BATCH_BYTES = 8 << 20
"""Text in a batch. A thousand documents of 10 MB at once fill the memory, and their worker would pass for stuck."""


class OperatorDefect(TypeError):
    """The operator broke its own contract: no row is to blame, and the shard fails."""


@dataclass
class AnnotateWorker:
    """Carries out one annotator over shards. ``process`` commits the shard and gives back its record."""

    operator: Annotator
    inputs: tuple[Input, ...]
    output: Store
    folder: Folder
    concurrency: int = 1
    _pulse: Pulse | None = field(default=None, repr=False)
    _raised: list[Exception] = field(default_factory=list, repr=False)

    def setup(self) -> None:
        began = time.monotonic()
        self._pulse = Pulse()
        self.operator.setup(local_models(self.operator.models()))
        self._pulse.was_set_up(time.monotonic() - began)

    def process(self, unit: Unit) -> Record:
        assert self._pulse is not None
        began = time.monotonic()
        with self._pulse.busy():
            table, seen = read_unit(self.inputs, unit, self.operator.reads)
            self._pulse.step()
            attempt = Attempt.at(unit, self.folder, seen)
            standing = adopt(self.output, self.folder.file(unit.name, attempt.key), attempt.key)
            if standing is not None:
                notes = recovered(unit.again, standing.footer.accounts)
                record = finished(self.output, self.folder, unit.name, standing, seen, began, notes, attempt)
            else:
                record = self._make(table, unit, attempt, seen, began)
        self._pulse.step()
        return record

    def beat(self) -> Beat:
        return self._pulse.beat() if self._pulse is not None else Beat()

    def drain(self) -> None:
        """A shard is small: the one at hand is finished."""

    def close(self) -> None:
        """Nothing is held but memory."""

    def _make(self, table: pa.Table, unit: Unit, attempt: Attempt, seen: list[InputShard], began: float) -> Record:
        status, reasons = verdicts(table, self.operator.reads)
        todo = [row for row, state in enumerate(status) if state == OK]
        before = None
        if unit.again is not None:
            before = standing_table(self.output, unit.again)
            states, why = before.column(STATUS).to_pylist(), before.column(REASON).to_pylist()
            todo = [row for row in todo if states[row] == QUARANTINED]
            for row, state in enumerate(states):
                if state != QUARANTINED:
                    status[row], reasons[row] = state, why[row]
        columns = self._run(table, todo, status, reasons, before)
        result = pa.table(
            {
                ID: table.column(ID),
                **{field.name: columns.column(field.name) for field in self.operator.adds},
                STATUS: pa.array(status, pa.string()),
                REASON: pa.array(reasons, pa.string()),
            }
        )
        outcomes = Counter(status)
        accounts = Accounts(
            rows_in=len(status),
            outcomes=dict(sorted(outcomes.items())),
            rows_out=result.num_rows,
            outputs=dict(sorted(outcomes.items())),
            reasons=counted(reasons, status, QUARANTINED),
        )
        notes = recovered(unit.again, accounts)
        if unit.again is not None and not notes[RECOVERED]:
            return unit.again.model_copy(update={"notes": notes, "adopted": True})
        name, key = unit.name, attempt.key
        quarantine = commit_quarantine(self.output, self.folder, table, name, key, status, reasons)
        footer = Footer.of(self.folder, name, key, accounts, quarantine)
        committed = commit_table(self.output, self.folder.file(name, key), result, footer)
        return finished(self.output, self.folder, name, committed, seen, began, notes, attempt)

    def _run(
        self,
        table: pa.Table,
        todo: list[int],
        status: list[str],
        reasons: list[str | None],
        before: pa.Table | None,
    ) -> pa.Table:
        """The operator over the rows to do, in batches in row order; the others keep what they had ``before``, or get
        nulls.
        """
        assert self._pulse is not None
        given = table.select([ID, *(column for column in self.operator.reads if column != ID)])
        parts: list[pa.Table] = []
        self._raised = []
        for rows in _batches(given, todo, self.operator):
            together = rows[-1] - rows[0] + 1 == len(rows)  # as they mostly are, and then no text is copied
            batch = given.slice(rows[0], len(rows)) if together else given.take(pa.array(rows, pa.int64()))
            part = self._batch(batch, rows, status, reasons)
            parts.append(part)
            self._pulse.step(rows=len(rows))
        if len(self._raised) == len(todo) > 1 and before is None:
            raise self._raised[-1]  # where every row fails it is no row's fault
        schema = self.operator.adds.remove_metadata()
        done = pa.concat_tables(parts) if parts else schema.empty_table()
        places: list[int | None] = [None] * table.num_rows
        if before is not None:
            places = [done.num_rows + row if state == OK else None for row, state in enumerate(status)]
            done = pa.concat_tables([done.cast(schema), before.select(schema.names).cast(schema)])
        for place, row in enumerate(todo):
            places[row] = place if status[row] == OK else None
        return done.take(pa.array(places, pa.int64()))

    def _batch(self, given: pa.Table, rows: list[int], status: list[str], reasons: list[str | None]) -> pa.Table:
        try:
            return self._checked(given, rows, status, reasons)
        except (MemoryError, OperatorDefect):
            raise
        except Exception:
            return self._without_poison(given, rows, status, reasons)

    def _without_poison(
        self, given: pa.Table, rows: list[int], status: list[str], reasons: list[str | None]
    ) -> pa.Table:
        """Finds the rows that make the operator fail, one by one."""
        good: list[int] = []
        assert self._pulse is not None
        for place, row in enumerate(rows):
            self._pulse.step()
            try:
                self.operator(given.slice(place, 1))
                good.append(place)
            except Exception as own:
                status[row], reasons[row] = QUARANTINED, _one_line(own)
                self._raised.append(own)
        if not good:
            return _nulls(self.operator.adds, len(rows))
        done = self._checked(given.take(pa.array(good, pa.int64())), [rows[place] for place in good], status, reasons)
        places: list[int | None] = [None] * len(rows)
        for found, place in enumerate(good):
            places[place] = found
        return done.take(pa.array(places, pa.int64()))

    def _checked(self, given: pa.Table, rows: list[int], status: list[str], reasons: list[str | None]) -> pa.Table:
        result = self.operator(given)
        name = type(self.operator).__name__
        if result.num_rows != len(rows):
            raise OperatorDefect(f"{name} gave {result.num_rows} rows for {len(rows)}")
        if REASON in result.column_names:
            for place, reason in enumerate(result.column(REASON).to_pylist()):
                if reason is not None:
                    status[rows[place]], reasons[rows[place]] = QUARANTINED, reason
        lacking = set(self.operator.adds.names) - set(result.column_names)
        if lacking:
            raise OperatorDefect(f"{name} gave no column {sorted(lacking)[0]!r}")
        kept = result.select(self.operator.adds.names)
        if kept.schema.remove_metadata() != self.operator.adds.remove_metadata():
            raise OperatorDefect(f"{name} gave {kept.schema} where it declares {self.operator.adds}")
        return kept.combine_chunks()


def _batches(given: pa.Table, todo: list[int], operator: Annotator) -> Iterator[list[int]]:
    """The rows to do in runs of ``batch_size``; an exact operator's end at BATCH_BYTES of text as well."""
    most = operator.batch_size
    texts = [one for one in given.columns if pa.types.is_string(one.type)]
    if not operator.exact or sum(one.nbytes for one in texts) <= BATCH_BYTES:
        yield from (todo[start : start + most] for start in range(0, len(todo), most))
        return
    sizes = sum(pc.fill_null(pc.binary_length(one), 0).to_numpy().astype(np.int64) for one in texts)
    batch: list[int] = []
    held = 0
    for row in todo:
        if batch and (len(batch) == most or held + sizes[row] > BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(row)
        held += sizes[row]
    if batch:
        yield batch


def verdicts(table: pa.Table, reads: Sequence[str]) -> tuple[list[str], list[str | None]]:
    """Status and reason of every row before the operator: skipped upstream, unusable, or ok."""
    reason = table.column(PROBLEM)
    for column in reads:
        null = pc.if_else(pc.is_null(table.column(column)), f"{column} is null", pa.scalar(None, pa.string()))
        reason = pc.coalesce(reason, null)
    upstream = table.column(UPSTREAM).to_pylist()
    reasons: list[str | None] = reason.to_pylist()
    status: list[str] = []
    for row, state in enumerate(upstream):
        if state is not None:
            status.append(SKIPPED)
            reasons[row] = f"{state} upstream" if state != SKIPPED else "skipped upstream"
        else:
            status.append(OK if reasons[row] is None else QUARANTINED)
    return status, reasons


def finished(
    store: Store,
    folder: Folder,
    name: str,
    committed: Any,
    seen: list[InputShard],
    began: float,
    notes: dict[str, int] | None = None,
    attempt: Attempt | None = None,
) -> Record:
    """Writes the record that makes a committed shard finished."""
    made = attempt or Attempt(committed.footer.key, committed.footer.key)
    record = Record(
        stage=folder.stage,
        fingerprint=folder.fingerprint,
        name=name,
        key=committed.footer.key,
        path=committed.path,
        sha256=committed.sha256,
        bytes=committed.bytes,
        rows=committed.rows,
        accounts=committed.footer.accounts,
        inputs=seen,
        quarantine=committed.footer.quarantine,
        adopted=committed.adopted,
        attempt=made.number,
        base=made.base if made.number else "",
        supersedes=made.supersedes,
        replaces=made.replaces,
        retry_of=made.retry_of,
        notes=notes or {},
        seconds=round(time.monotonic() - began, 3),
    )
    write_record(store, folder, record)
    return record


def local_models(references: dict[str, str]) -> dict[str, Path]:
    """Each model on this machine, where the worker runs."""
    return {name: resolve(reference).path for name, reference in references.items()}


def _nulls(schema: pa.Schema, rows: int) -> pa.Table:
    return pa.table({one.name: pa.nulls(rows, one.type) for one in schema}, schema=schema)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {line_of(error, 300)}"[:300]
