"""Any schema, any values, any damage through the whole chain: no crash, and no row that is not accounted for."""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

from operators.base import Annotator
from operators.language import tokens
from operators.language.identify import LanguageId
from operators.language.tokens import TokenCount
from operators.safety.tags import remove_tags
from tasks.source import ShardError, SourceColumns, open_source, read_source
from tasks.store import Store
from tasks.summary import RunSummary, Status
from tasks.verify import verify
from tests.bad_input import chain
from tests.fuzzed_input import Fuzzed, inputs
from tests.small_job import rows_of
from tests.tasks.test_bad_input import corpus_of, files_of, records_of
from tests.toys import Picky

ROUTES = (("tag", "tokens >= 8 AND fine"), ("keep", "tokens >= 1 AND fine"))
STAGES = ("picky", "language", "harm_score", "tokens")


class Harmless(Annotator):
    """Stands in for the harm scorer, which takes seconds to be trained."""

    version: ClassVar[str] = "1"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    adds: ClassVar[pa.Schema] = pa.schema([("harm_score", pa.int8())])

    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.table([pa.array([0] * table.num_rows, pa.int8())], schema=self.adds)


FIRST = Fuzzed("!first.jsonl", b'{"text": "A good row.", "more": 1, "id": "good"}\n', (b"A good row.",))
CARRYING = SourceColumns(mapping=(("more", "more"),))


@pytest.fixture(scope="module", autouse=True)
def one_tokenizer() -> Iterator[None]:
    """Loaded once and not by every worker: it takes half a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "load_tokenizer", functools.cache(tokens.load_tokenizer))
        yield


def run(web: Path, out: Path) -> RunSummary:
    operators = {"picky": Picky(), "language": LanguageId(), "harm_score": Harmless(), "tokens": TokenCount()}
    return chain(str(web), str(out), annotators=operators, carried={"more": "more"}, routes=ROUTES)


def expected(web: Path, shards: list[Fuzzed]) -> dict[str, list[bytes | None]]:
    """Text of every row of every shard that has to be read, the damaged ones as they read now."""
    dataset = open_source(str(web), CARRYING)
    found: dict[str, list[bytes | None]] = {}
    for shard, listed in zip(sorted(shards, key=lambda one: one.name), dataset.shards, strict=True):
        assert shard.name == listed.name
        try:
            table, _ = read_source(dataset, listed, ["more"])
        except ShardError as error:
            lost = str(error)
        else:
            lost = ""
        assert shard.readable is None or shard.readable is (lost == ""), lost
        if lost:
            assert "\n" not in lost and shard.name in lost
            continue
        texts = list(shard.texts)
        if shard.readable is None:
            rows = table.select(["text", "problem"]).to_pylist()
            texts = [None if row["problem"] else row["text"].encode() for row in rows]
        found[shard.name] = texts
    return found


def usable(text: bytes | None) -> bool:
    try:
        return bool(text) and bool(text.decode())  # type: ignore[union-attr]
    except UnicodeDecodeError:
        return False


def check(folder: Path, shards: list[Fuzzed]) -> None:
    web, out = folder / "web", folder / "out"
    shutil.rmtree(folder, ignore_errors=True)
    for shard in shards:
        file = web / shard.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(shard.data)
    rows = expected(web, shards)
    summary = run(web, out)
    output = Store(str(out))
    records = records_of(output)
    # a shard in which the operator fails on every row is no row's fault, and fails
    hopeless = set()
    for name, texts in rows.items():
        todo = [text for text in texts if usable(text)]
        if len(todo) > 1 and all(b"POISON" in text for text in todo if text):
            hopeless.add(name)
    for stage in STAGES:
        done = set(rows) - (hopeless if stage == "picky" else set())
        failed = {one.shard: one for one in _stage(summary, stage).failures}
        assert set(records[stage]) == done and set(failed) == {one.name for one in shards} - done
        assert all("\n" not in one.error and len(one.error) < 500 for one in failed.values())
        for name in done:
            check_stage(output, stage, records[stage][name], rows[name])
    corpus = [row for row in corpus_of(output, summary) if row["origin"] == "real"]
    kept = {
        (name, place): text
        for name, texts in rows.items()
        if name not in hopeless
        for place, text in enumerate(texts)
        if usable(text) and b"POISON" not in (text or b"") and b"REFUSE" not in (text or b"")
    }
    assert Counter((row["source_shard"], row["source_ordinal"]) for row in corpus) == Counter(kept.keys())
    for row in corpus:
        assert remove_tags(row["text"]).encode() == kept[row["source_shard"], row["source_ordinal"]]
        assert row["id"] is not None
    assert all(one.accounts.closed() for one in summary.stages)
    whole = not hopeless and set(rows) == {one.name for one in shards}
    assert (summary.status is Status.DONE) == whole, summary.messages
    found = verify(output)
    assert found.ok == whole and not any(one.problems for one in found.stages), found
    before = files_of(output)
    again = run(web, out)
    assert not any(stage.shards_made for stage in again.stages) and again.status is summary.status
    assert files_of(output) == before


def check_stage(output: Store, stage: str, record: Any, texts: list[bytes | None]) -> None:
    accounts = record.accounts
    assert accounts.closed() and accounts.rows_in == accounts.rows_out == len(texts)
    found = rows_of(output, record.path)
    assert dict(Counter(row["status"] for row in found)) == accounts.outcomes
    wrong = {place for place, text in enumerate(texts) if not usable(text)}
    if stage == "picky":
        wrong |= {n for n, text in enumerate(texts) if b"POISON" in (text or b"") or b"REFUSE" in (text or b"")}
    assert {place for place, row in enumerate(found) if row["status"] != "ok"} == wrong
    held = {row["ordinal"]: row for row in rows_of(output, record.quarantine)} if record.quarantine else {}
    assert set(held) == wrong
    for place, row in held.items():
        assert row["reason"] == found[place]["reason"] and row["row"] and row["id"] == found[place]["id"]
        text = texts[place]
        if text and not usable(text):
            assert row["row"] == text


def _stage(summary: RunSummary, name: str) -> Any:
    return next(one for one in summary.stages if one.name == name)


ANY = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


@settings(max_examples=8, **ANY)
@given(shards=inputs())
def test_any_input_is_accounted_for(tmp_path: Path, shards: list[Fuzzed]) -> None:
    check(tmp_path / "any", [FIRST, *shards])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=400, **ANY)
@given(shards=inputs())
def test_any_of_many_inputs_is_accounted_for(tmp_path: Path, shards: list[Fuzzed]) -> None:
    check(tmp_path / "any", [FIRST, *shards])
