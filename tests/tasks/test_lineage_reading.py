"""Which version lineage takes, how much it reads, where it works, and what a person sees of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tasks import rewrite
from tasks.lineage import trace as tracing
from tasks.lineage.facts import Trace
from tasks.lineage.reading import Tally, opened, row_at, rows_where
from tasks.lineage.search import corpus_file
from tasks.lineage.terminal import print_trace
from tasks.lineage.trace import Nowhere, trace
from tasks.records import write_record
from tasks.store import Store, StoreError
from tasks.version import open_version
from tests.traced import (
    FAILS,
    NULL,
    REFUSED,
    SHARDS,
    SHORT,
    TWICE,
    Paraphraser,
    Traced,
    curate,
    two_runs,
    write_model,
    write_web,
)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    with two_runs(tmp_path_factory.mktemp("traced")) as made:
        yield made


# Single rows


IDS = st.lists(st.sampled_from(["a", "b", "zz", "é", "\U0001f600", "ａ", ""]), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(IDS, st.integers(1, 5), st.sampled_from(["a", "é", "\U0001f600", "ａ", "nowhere"]), st.booleans())
def test_rows_are_found_over_row_groups_with_and_without_statistics(
    ids: list[str], group: int, wanted: str, statistics: bool
) -> None:
    with TemporaryDirectory() as folder:
        table = pa.table({"id": ids, "number": range(len(ids))})
        pq.write_table(table, f"{folder}/a.parquet", row_group_size=group, write_statistics=statistics)
        with opened(Store(folder), "a.parquet", Tally()) as file:
            assert rows_where(file, "id", wanted) == [place for place, one in enumerate(ids) if one == wanted]
            assert rows_where(file, "number", 3) == ([3] if len(ids) > 3 else [])
            for place, one in enumerate(ids):
                assert row_at(file, place) == {"id": one, "number": place}
            assert row_at(file, len(ids)) is None


def test_row_groups_that_statistics_exclude_are_not_read(tmp_path: Path) -> None:
    ids = [f"{row:06d}" for row in range(40_000)]
    pq.write_table(pa.table({"id": ids}), tmp_path / "a.parquet", row_group_size=10_000, compression="none")
    whole, one = Tally(), Tally()
    with opened(Store(str(tmp_path)), "a.parquet", whole) as file:
        file.read(columns=["id"])
    with opened(Store(str(tmp_path)), "a.parquet", one) as file:
        assert rows_where(file, "id", "025000") == [25_000]
    assert one.bytes < whole.bytes / 2


def test_a_file_that_is_gone_or_damaged_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no Parquet")
    with pytest.raises(StoreError, match=r"a\.parquet: .+"), opened(Store(str(tmp_path)), "a.parquet", Tally()):
        pytest.fail("opened")
    with pytest.raises(StoreError, match="is gone"), opened(Store(str(tmp_path)), "b.parquet", Tally()):
        pytest.fail("opened")


# Which version, and how much is read


def test_the_newest_run_that_ended_well_is_taken_and_others_by_name(traced: Traced) -> None:
    assert trace(open_version(str(traced.root)), "doc-2").run == traced.second.run_id
    assert traced.one(SHORT).documents[0].corpus.outcome == "in_corpus"
    assert traced.one(SHORT, traced.second).documents[0].corpus.outcome == "dropped"
    with pytest.raises(StoreError, match="there is no run 20200101T000000-abcdef; the last ones are"):
        open_version(f"{traced.root}@20200101T000000-abcdef")


def test_the_previous_version_is_the_newest_with_another_corpus(traced: Traced, tmp_path: Path) -> None:
    root = tmp_path / "out"
    shutil.copytree(traced.root, root)
    again = {**traced.second.model_dump(mode="json"), "run_id": "29990101T000000-abcdef"}
    (root / ".winnow" / "runs" / "29990101T000000-abcdef.json").write_text(json.dumps(again))
    assert open_version(f"{root}@previous").run.run_id == traced.first.run_id
    assert open_version(str(root)).run.run_id == "29990101T000000-abcdef"
    for one in (root / ".winnow" / "runs").glob(f"{traced.first.run_id}*"):
        one.unlink()
    with pytest.raises(StoreError, match="there is no version before the last one"):
        open_version(f"{root}@previous")


def test_a_run_that_failed_is_not_taken_but_told(traced: Traced, tmp_path: Path) -> None:
    root = tmp_path / "out"
    shutil.copytree(traced.root, root)
    failed = {**traced.second.model_dump(mode="json"), "run_id": "29990101T000000-abcdef", "status": "failed"}
    (root / ".winnow" / "runs" / "29990101T000000-abcdef.json").write_text(json.dumps({**failed, "corpus": ""}))
    found = trace(open_version(str(root)), "doc-2")
    assert found.run == traced.second.run_id and found.later == "29990101T000000-abcdef failed"
    assert open_version(f"{root}@29990101T000000-abcdef").run.status == "failed"


def test_what_came_of_a_retry_is_read_where_it_replaced_a_shard(traced: Traced, tmp_path: Path) -> None:
    root = tmp_path / "out"
    shutil.copytree(traced.root, root)
    store = Store(str(root))
    stage = open_version(f"{root}@{traced.first.run_id}").stages["judged"]
    old = stage.records[SHARDS[0]]
    new = old.model_copy(
        update={
            "key": "f" * 64,
            "path": f"{old.path.removesuffix('.parquet')}-again.parquet",
            "attempt": 1,
            "base": old.key,
            "supersedes": old.key,
            "retry_of": traced.second.run_id,
        }
    )
    (root / old.path).rename(root / new.path)
    with pytest.raises(StoreError, match="is gone; the same command again makes it anew"):
        trace(open_version(f"{root}@{traced.first.run_id}"), "doc-2")
    write_record(store, stage.folder, new)
    found = trace(open_version(f"{root}@{traced.first.run_id}"), "doc-2")
    step = found.documents[0].steps[0]
    assert (step.place.file, step.attempt, step.retry_of) == (new.path, 1, traced.second.run_id)
    assert "lang = en  harm_score = 0  (after 1 retry)" in shown(found)


def test_a_source_that_is_gone_or_changed_is_said_and_the_rest_is_told(traced: Traced, tmp_path: Path) -> None:
    web = tmp_path / "web"
    shutil.copytree(traced.web, web)
    root = tmp_path / "out"
    shutil.copytree(traced.root, root)
    for file in (root / ".winnow" / "runs").glob("*.json"):
        file.write_text(file.read_text().replace(str(traced.web), str(web)))
    changed = trace(open_version(str(root)), "doc-2").documents[0]
    assert changed.source.state == "changed" and changed.source.values == {}
    (web / SHARDS[0]).unlink()
    gone = trace(open_version(str(root)), "doc-2").documents[0]
    assert gone.source.state == "gone" and gone.corpus.outcome == "in_corpus"
    assert "not shown: the file is not there any more" in shown(trace(open_version(str(root)), "doc-2"))


def test_a_placed_lookup_reads_one_corpus_file_and_one_shard(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "SCAN_WITHOUT_ASKING", 0)
    for name in ("doc-2", traced.frame("rephrase").filter(pl.col("status") == "rejected")["id"][0]):
        opened = files_opened(monkeypatch)
        found = traced.one(name)
        assert not found.search.complete and "computed from its id" in found.search.how
        assert {file for file in opened if file.startswith("judged/")} == {found.documents[0].steps[0].place.file}
        assert len({file for file in opened if file.startswith("rephrase/")}) == 1
    opened = files_opened(monkeypatch)
    assert traced.one("doc-2", everything=True).search.complete
    assert len({file for file in opened if file.startswith("judged/")}) == 3
    assert traced.one(1).documents[0].corpus.outcome == "dropped", "what has no place is found by the scan"


def test_a_named_shard_is_the_only_one_that_is_read(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = files_opened(monkeypatch)
    found = traced.one(1, shard=SHARDS[0])
    assert [(one.shard, one.ordinal) for one in found.documents] == [(SHARDS[0], 1)]
    assert len({file for file in opened if file.startswith("judged/")}) == 1
    assert [one.shard for one in traced.one(TWICE, shard="part-1.parquet").documents] == [SHARDS[1]]
    with pytest.raises(StoreError, match="--shard elsewhere: no source shard has this name; there are 3, such as"):
        traced.one(1, shard="elsewhere")


def files_opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths below the root that are opened from now on."""
    from tasks.lineage import reading, search

    opened: list[str] = []

    def spy(store: Store, path: str, tally: Any) -> Any:
        opened.append(path)
        return reading.opened(store, path, tally)

    for module in (search, tracing):
        monkeypatch.setattr(module, "opened", spy)
    return opened


def test_an_id_that_is_no_text_is_refused(traced: Traced) -> None:
    with pytest.raises(Nowhere, match="is not valid UTF-8"):
        traced.one("doc-\udcff")


def test_the_file_of_a_corpus_row_is_computed(traced: Traced) -> None:
    version = traced.version(traced.first)
    corpus = traced.frame("corpus")
    assert corpus["file"].n_unique() > 3
    for name, file in corpus.select("id", "file").iter_rows():
        record = corpus_file(version, name)
        assert record is not None and str(traced.root / record.path) == file


def test_lineage_works_the_same_on_a_store(
    web: Path, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrite, "load_engine", lambda settings, folder: Paraphraser())
    source = write_web(tmp_path / "documents")
    summary = curate(source, root, write_model(tmp_path / "model"))
    found = trace(open_version(root), "doc-2")
    assert found.run == summary.run_id and found.documents[0].corpus.outcome == "in_corpus"
    assert found.search.complete and found.search.bytes_read < 10**6
    with pytest.raises(Nowhere):
        trace(open_version(root), "doc-1000")


def test_a_run_without_a_build_says_that_there_is_no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrite, "load_engine", lambda settings, folder: Paraphraser())
    root = str(tmp_path / "out")
    curate(write_web(tmp_path / "web"), root, write_model(tmp_path / "model"), build=False)
    document = trace(open_version(root), "doc-2").documents[0]
    assert document.corpus.outcome == "no_corpus" and document.decisions[0].route == "keep"
    with pytest.raises(StoreError, match="no run has ended here"):
        open_version(str(tmp_path / "web"))


# What a person sees


def shown(found: Trace, width: int = 80) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        print_trace(found, console)
    return capture.get()


def test_the_tree_fits_eighty_columns_but_for_paths_which_are_never_broken(traced: Traced) -> None:
    for row in (2, 0, 1, NULL, FAILS, REFUSED, TWICE):
        found = traced.one(row)
        text = shown(found)
        long = [line for line in text.splitlines() if len(line) > 80]
        assert all("/" in line for line in long), long
        for document in found.documents:
            assert f"{document.source.url}, row {document.ordinal}\n" in text
            if document.corpus.place is not None:
                assert f"{document.corpus.place.file}, row {document.corpus.place.row}\n" in text


def test_the_tree_says_in_words_why(traced: Traced) -> None:
    assert "drop, no condition was met: harm_score=0, lang=de" in shown(traced.one(1))
    assert "not met, keep: lang = 'en' AND harm_score = 0" in shown(traced.one(1))
    assert "quarantined: text is null" in shown(traced.one(NULL))
    assert "rejected by the gate empty" in shown(traced.one(REFUSED))
    assert "in the corpus with harm tags" in shown(traced.one(60))
    assert "3 source documents have this id:" in shown(traced.one(TWICE))
