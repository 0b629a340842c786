"""Derives accounts and checksums again from the data and says what is wrong. Reads everything; writes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field

from tasks.attempt import superseded
from tasks.build import ORIGIN, TAGGED
from tasks.commit import read_footer
from tasks.corpus import CORPUS_STAGE
from tasks.dataset import HIDDEN, Folder
from tasks.records import Record, read_records
from tasks.runs import last_run
from tasks.store import Store, StoreError
from tasks.summary import StageSummary, Status

READERS = 8


class StageVerification(BaseModel):
    """What was checked of one stage folder."""

    stage: str
    fingerprint: str
    shards: int
    rows: int
    problems: list[str] = Field(default_factory=list)


class Verification(BaseModel):
    """``ok`` where every file is what its record says and every account closes; ``problems`` name what is not."""

    url: str
    ok: bool
    corpus: str = ""
    corpus_rows: int = 0
    stages: list[StageVerification]
    problems: list[str] = Field(default_factory=list, description="Of the run as a whole.")


def verify(store: Store) -> Verification:
    """Checks every finished shard of every stage, and that the last run's corpus holds what was scattered to it.

    Raises StoreError where nothing was ever run there.
    """
    summary = last_run(store)
    folders = list(_folders(store))
    if summary is None and not folders:
        raise StoreError(f"{store.url}: holds no winnow run; give the --output of one")
    stages = [_stage(store, folder) for folder in folders]
    problems: list[str] = []
    corpus, rows = "", 0
    if summary is None:
        problems.append("no run has ended here yet: stages are there, a corpus is not")
    else:
        corpus = summary.corpus
        if summary.status is not Status.DONE:
            problems.append(f"the last run ended {summary.status.value}: {'; '.join(summary.messages)}")
        problems += _run_problems(summary.stages)
        last = summary.stages[-1] if summary.stages else None
        if last is not None and last.name == CORPUS_STAGE:
            found = [one for one in stages if (one.stage, one.fingerprint) == (last.name, last.fingerprint)]
            rows = found[0].rows if found else 0
    ok = not problems and not any(one.problems for one in stages)
    return Verification(url=store.url, ok=ok, corpus=corpus, corpus_rows=rows, stages=stages, problems=problems)


def derived(stage: str, table: pa.Table) -> dict[str, int]:
    """Rows out by status, counted from the rows themselves."""
    if "status" in table.column_names:
        return dict(Counter(table.column("status").to_pylist()))
    if TAGGED in table.column_names:
        pairs = zip(table.column(ORIGIN).to_pylist(), table.column(TAGGED).to_pylist(), strict=True)
        return dict(Counter("tagged" if tagged else origin for origin, tagged in pairs))
    return {"bins": table.num_rows} if stage.startswith(f"{CORPUS_STAGE}-resolve") else {}


def _folders(store: Store) -> Iterator[Folder]:
    """Every stage and fingerprint that has records or a manifest."""
    seen: set[tuple[str, str]] = set()
    for kind in ("manifests", "records"):
        for stage in store.folders(f"{HIDDEN}/{kind}"):
            for mark in store.folders(f"{HIDDEN}/{kind}/{stage}"):
                seen.add((stage, mark))
    for stage, mark in sorted(seen):
        yield Folder(stage, mark, hidden=stage.startswith((f"{CORPUS_STAGE}-resolve", f"{CORPUS_STAGE}-scatter")))


def _stage(store: Store, folder: Folder) -> StageVerification:
    records = read_records(store, folder)
    entries = store.entries(folder.data)
    standing = {entry.path: entry.size for entry in entries}
    # a retry supersedes shards and removes them; manifests of before still name them, and a kill may have left the file
    gone = superseded(records, standing)
    records = [record for record in records if record.key not in gone]
    with ThreadPoolExecutor(READERS) as pool:
        problems = [line for lines in pool.map(lambda record: _record(store, record), records) for line in lines]
    known = {record.path for record in records}
    left = {folder.file(record.name, record.supersedes) for record in records if record.supersedes}
    for entry in entries:
        if not entry.path.endswith(".parquet"):
            problems.append(f"{entry.path}: not a Parquet file; readers of the folder will stumble over it")
        elif entry.path not in known | left:
            problems.append(f"{entry.path}: has no record; the next run adopts it, or winnow gc removes it")
    return StageVerification(
        stage=folder.stage,
        fingerprint=folder.fingerprint,
        shards=len(known),
        rows=sum({record.path: record.rows for record in records}.values()),
        problems=problems,
    )


def _record(store: Store, record: Record) -> list[str]:
    if store.entry(record.path) is None:
        return [f"{record.path}: is gone; run the same command again to make it anew"]
    try:
        with store.fetched(record.path) as (local, digest):
            if digest != record.sha256:
                return [f"{record.path}: checksum {digest[:12]} is not the recorded {record.sha256[:12]}"]
            problems = _file(record, local)
        if record.quarantine:
            problems += _quarantine(store, record)
        return problems
    except StoreError as error:
        return [f"{record.path}: {error}"]
    except (pa.ArrowException, OSError) as error:
        return [f"{record.path}: it or its quarantine cannot be read ({str(error).splitlines()[0]})"]


def _file(record: Record, local: Path) -> list[str]:
    footer = read_footer(local)
    if footer is None or footer.key != record.key or footer.accounts != record.accounts:
        return [f"{record.path}: its footer does not say what its record says"]
    problems: list[str] = []
    names = pq.read_schema(local).names
    table = pq.read_table(local, columns=[one for one in ("status", ORIGIN, TAGGED) if one in names] or names[:1])
    if table.num_rows != record.rows or table.num_rows != record.accounts.rows_out:
        problems.append(f"{record.path}: {table.num_rows} rows, {record.accounts.rows_out} in its accounts")
    counted = derived(record.stage, table)
    if counted != record.accounts.outputs:
        problems.append(f"{record.path}: rows by status {counted}, in its accounts {record.accounts.outputs}")
    if not record.accounts.closed():
        problems.append(f"{record.path}: its accounts do not close")
    return problems


def _quarantine(store: Store, record: Record) -> list[str]:
    if store.entry(record.quarantine) is None:
        return [f"{record.quarantine}: the quarantined rows are gone"]
    with store.fetched(record.quarantine) as (local, _):
        footer = read_footer(local)
        if footer is None or footer.key != record.key:
            return [f"{record.quarantine}: its footer does not say what its record says"]
        rows = pq.read_table(local).num_rows
    wanted = record.accounts.quarantined
    return [] if rows == wanted else [f"{record.quarantine}: {rows} rows, {wanted} were quarantined"]


def _run_problems(stages: list[StageSummary]) -> list[str]:
    """The accounts over the last run's build: what its scatters sent is what its corpus holds."""
    sent = sum(one.accounts.rows_out for one in stages if one.name.startswith(f"{CORPUS_STAGE}-scatter"))
    came = [one.accounts.rows_out for one in stages if one.name == CORPUS_STAGE]
    if not came or sent == came[0]:
        return []
    return [f"corpus: {sent} rows were scattered, {came[0]} gathered"]
