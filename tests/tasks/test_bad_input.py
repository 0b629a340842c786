"""The whole chain over every kind of bad shard at once, on a folder and on S3: each case with its written outcome."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from operators.safety.tags import remove_tags
from tasks.dataset import HIDDEN
from tasks.lineage.trace import trace
from tasks.records import Record, read_records
from tasks.store import Store
from tasks.summary import RunSummary, Status
from tasks.verify import _folders, verify
from tasks.version import open_version
from tests.bad_input import BAD, HIDDEN_NAMES, Bad, chain, good, put, stand_ins, write
from tests.small_job import rows_of

pytestmark = pytest.mark.timeout(600)

READING = ("language", "harm_score", "tokens")
READABLE = tuple(one for one in BAD if not one.fails)
LOST = tuple(one for one in BAD if one.fails)


@dataclass
class Ran:
    """One run over all of them. ``records``: by stage, then shard."""

    web: Store
    output: Store
    folder: Path
    trained: bool
    summary: RunSummary
    records: dict[str, dict[str, Record]]
    tables: dict[str, list[dict[str, Any]]]
    corpus: list[dict[str, Any]]

    def rows(self, path: str) -> list[dict[str, Any]]:
        if path not in self.tables:
            self.tables[path] = rows_of(self.output, path)
        return self.tables[path]


def records_of(output: Store) -> dict[str, dict[str, Record]]:
    return {one.stage: {r.name: r for r in read_records(output, one)} for one in _folders(output)}


def files_of(output: Store) -> dict[str, str]:
    """Digest of everything that a second run may not touch."""
    skip = tuple(f"{HIDDEN}/{one}/" for one in ("records", "runs", "reports", "cards", "running", "ledger"))
    paths = [entry.path for entry in output.entries() if not entry.path.startswith(skip)]
    return {path: hashlib.sha256(output.read(path)).hexdigest() for path in paths}


def corpus_of(output: Store, summary: RunSummary) -> list[dict[str, Any]]:
    folder = next(one.folder for one in summary.stages if one.name == "corpus")
    return [row for entry in output.entries(folder) for row in rows_of(output, entry.path)]


SLOW = pytest.mark.slow


@pytest.fixture(
    scope="module", params=["folder", pytest.param("folder, trained", marks=SLOW), pytest.param("s3", marks=SLOW)]
)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("bad")
    trained = request.param != "folder"
    root = str(folder) if request.param.startswith("folder") else f"{request.getfixturevalue('s3')}/{folder.name}"
    web = write(f"{root}/web", BAD)
    for name in HIDDEN_NAMES:
        put(web, name, b"not to be read")
    with stand_ins(folder, trained) as engine:
        summary = chain(f"{root}/web", f"{root}/out", engine)
        output = Store(f"{root}/out")
        yield Ran(web, output, folder, trained, summary, records_of(output), {}, corpus_of(output, summary))


# -- one case each -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", READABLE, ids=[one.name[:40] for one in READABLE])
def test_every_row_of_a_readable_shard_has_its_outcome(ran: Ran, bad: Bad) -> None:
    for stage in READING:
        record = ran.records[stage][bad.name]
        assert record.accounts.closed() and record.accounts.rows_in == record.accounts.rows_out == len(bad.rows)
        found = ran.rows(record.path)
        assert [row["status"] for row in found] == ["ok" if why is None else "quarantined" for _, why in bad.rows]
        for row, (_, why) in zip(found, bad.rows, strict=True):
            assert (row["reason"] is None) if why is None else row["reason"].startswith(why)
    real = [row for row in ran.corpus if row["source_shard"] == bad.name and row["origin"] == "real"]
    kept = {row["source_ordinal"]: row for row in real}
    assert sorted(kept) == sorted(bad.kept)
    for place, text in bad.kept.items():
        assert remove_tags(kept[place]["text"]) == text


@pytest.mark.parametrize("bad", [one for one in READABLE if len(one.kept) < len(one.rows)], ids=lambda one: one.name)
def test_quarantine_holds_reason_and_bytes(ran: Ran, bad: Bad) -> None:
    for stage in READING:
        held = {row["ordinal"]: row for row in ran.rows(ran.records[stage][bad.name].quarantine)}
        assert sorted(held) == [row for row, (_, why) in enumerate(bad.rows) if why is not None]
        for place, row in held.items():
            assert row["shard"] == bad.name and row["reason"].startswith(bad.rows[place][1]) and row["row"]
        for place, raw in bad.raw:
            assert held[place]["row"].rstrip(b"\n") == raw


@pytest.mark.parametrize("bad", LOST, ids=lambda one: one.name)
def test_a_shard_that_cannot_be_read_fails_alone_and_in_one_line(ran: Ran, bad: Bad) -> None:
    [failure] = [one for one in ran.summary.stages[0].failures if one.shard == bad.name]
    assert re.search(bad.fails, failure.error) and bad.name in failure.error and "\n" not in failure.error
    assert failure.attempts == 1, "trying again cannot help"
    assert not any(bad.name in records for records in ran.records.values())
    assert not any(row["source_shard"] == bad.name for row in ran.corpus)


# -- all of them together ------------------------------------------------------------------------------------------


def test_no_shard_but_the_lost_ones_fails_and_every_account_closes(ran: Ran) -> None:
    first, *later = ran.summary.stages
    assert {one.shard for one in first.failures} == {one.name for one in LOST}
    assert ran.summary.status is Status.FAILED and any("failed shards" in line for line in ran.summary.messages)
    assert not any(one.attempts for stage in later if stage.name not in READING for one in stage.failures)
    for stage in ran.summary.stages:
        assert stage.accounts.closed(), stage.name
    assert sum(len(one.rows) for one in READABLE) == first.accounts.rows_in


def test_the_corpus_holds_the_kept_rows_and_their_rephrases_alone(ran: Ran) -> None:
    real = Counter((r["source_shard"], r["source_ordinal"]) for r in ran.corpus if r["origin"] == "real")
    assert real == Counter((one.name, place) for one in READABLE for place in one.kept)
    parents = {row["id"] for row in ran.corpus if row["origin"] == "real"}
    assert all(row["parent_id"] in parents for row in ran.corpus if row["origin"] == "synthetic")
    assert any(row["tagged"] for row in ran.corpus)


def test_nothing_is_left_outside_the_output_and_no_hidden_file_is_read(ran: Ran) -> None:
    beside = {entry.path.split("/")[0] for entry in Store(ran.output.url.rpartition("/")[0]).entries()}
    assert beside <= {"web", "out", "model", "prompts"}
    held = {entry.path for entry in ran.web.entries()}
    assert held == {one.name for one in BAD} | set(HIDDEN_NAMES)
    for path in (entry.path for entry in ran.output.entries()):
        assert re.fullmatch(r"[A-Za-z0-9._/-]+", path) and ".." not in path.split("/") and len(path) < 250, path


def test_names_that_look_alike_have_files_of_their_own(ran: Ran) -> None:
    for records in ran.records.values():
        assert len({record.path.lower() for record in records.values()}) == len(records)


def test_lineage_of_a_doubled_id_names_every_row_of_it(ran: Ran) -> None:
    places = {
        ("double-a.parquet", 0),
        ("double-a.parquet", 1),
        ("double-b.parquet", 0),
        ("double-b.parquet", 1),
        ("double-c.jsonl", 2),
    }
    real = [row for row in ran.corpus if row["id"] == "d0" and row["origin"] == "real"]
    assert {(row["source_shard"], row["source_ordinal"]) for row in real} == places and len(real) == len(places)
    found = trace(open_version(ran.output.url), "d0", everything=True)
    assert {(one.shard, one.ordinal) for one in found.documents} == places


def test_the_same_command_again_does_nothing_but_try_the_lost_ones(ran: Ran) -> None:
    before = files_of(ran.output)
    with stand_ins(ran.folder, ran.trained) as engine:
        again = chain(ran.web.url, ran.output.url, engine)
    assert not any(stage.shards_made for stage in again.stages)
    assert {one.shard for one in again.stages[0].failures} == {one.name for one in LOST}
    assert files_of(ran.output) == before


def test_mended_shards_are_all_that_is_made_and_the_run_ends_well(ran: Ran) -> None:
    """Last, as it changes the input."""
    mended = [good(one.name) for one in LOST if one.name.endswith(".parquet")]
    for one in mended:
        put(ran.web, one.name, one.data)
    for one in LOST:
        if not one.name.endswith(".parquet"):
            ran.web.fs.rm_file(ran.web.absolute(one.name))
    with stand_ins(ran.folder, ran.trained) as engine:
        after = chain(ran.web.url, ran.output.url, engine)
    assert after.status is Status.DONE and after.messages == []
    assert {stage.name: stage.shards_made for stage in after.stages if stage.name in READING} == dict.fromkeys(
        READING, len(mended)
    )
    found = verify(ran.output)
    assert found.ok, found
    rows = Counter(
        (r["source_shard"], r["source_ordinal"]) for r in corpus_of(ran.output, after) if r["origin"] == "real"
    )
    assert rows == Counter((one.name, place) for one in (*READABLE, *mended) for place in one.kept)
