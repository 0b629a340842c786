"""Which versions a collection keeps: backfills, failed runs, runs that overlap; and runs that end while it lists."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.garbage.find import Kind, find_garbage
from tasks.garbage.kept import latest_versions
from tasks.garbage.sweep import sweep
from tasks.retry import check_unchanged
from tasks.runs import RUNS, save_run
from tasks.source import SourceColumns, open_source
from tasks.store import StoreError
from tasks.summary import RunSummary, Status
from tasks.verify import verify
from tests.upkept import KEEP, STRICT, Place, check, collect, made, paths, sentence, write_shard


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path, str(tmp_path / "store"))
    for shard in range(3):
        write_shard(place, shard)
    return place


@pytest.mark.parametrize("build", [True, False])
def test_a_backfill_makes_nothing_of_the_whole_garbage(place: Place, build: bool) -> None:
    whole = place.curate()
    place.curate(keep=STRICT, shards="part-1*", build=build)
    found = collect(place)
    assert whole.corpus in {one.corpus for one in found.kept}
    place.calls()
    assert made(place.curate()) == {} and place.calls()[1] == {}, "paid again after a backfill was collected"
    # the next version of the whole takes the backfill's place
    last = place.curate(keep=f"{KEEP} AND tokens > 3")
    found = collect(place)
    assert [one.run_id for one in found.kept] == [last.run_id]


def test_backfills_one_after_another_are_all_kept_while_there_is_no_whole(place: Place) -> None:
    for shard in range(3):
        place.curate(shards=f"part-{shard}*")
    assert collect(place).items == []
    place.calls()
    place.curate()
    assert place.calls()[1] == {}, "what a backfill paid for was deleted"
    again = place.curate(keep=STRICT)
    assert {one.run_id for one in collect(place).kept} == {again.run_id}
    check_strict(place)


def check_strict(place: Place) -> None:
    assert verify(place.store).ok
    assert made(place.curate(keep=STRICT)) == {}


def test_a_failed_run_does_not_make_the_last_good_corpus_garbage(place: Place) -> None:
    good = place.curate()
    bad = place.curate(keep=STRICT)
    store = place.store
    store.fs.rm_file(store.absolute(f"{RUNS}/{bad.run_id}.json"))
    store.fs.rm_file(store.absolute(f".winnow/reports/{bad.run_id}.html"))
    save_run(store, bad.model_copy(update={"status": Status.FAILED}))
    found = collect(place)
    assert {one.corpus for one in found.kept} == {good.corpus, bad.corpus} and found.items == []


def test_a_run_that_began_first_and_ended_last_is_kept(place: Place) -> None:
    """By the clock of the store, as another machine's may be slow."""
    slow = place.curate()
    quick = place.curate(keep=STRICT)
    later = time.time() + 5
    for area, end in ((RUNS, "json"), (".winnow/reports", "html")):
        os.utime(place.store.absolute(f"{area}/{slow.run_id}.{end}"), (later, later))
    found = collect(place)
    assert quick.corpus == found.kept[0].corpus
    assert not [item for item in found.items if item.kind is Kind.SHARDS]
    check(place)


def test_what_a_new_record_of_a_killed_run_names_stays(place: Place) -> None:
    place.curate()
    killed = place.curate(keep=STRICT)
    place.curate()
    store = place.store
    store.fs.rm_file(store.absolute(f"{RUNS}/{killed.run_id}.json"))
    later = time.time() + 5
    for entry in store.entries(".winnow/manifests/route"):
        os.utime(store.absolute(entry.path), (later, later))
    collect(place)
    assert not [line for stage in verify(store).stages if stage.stage == "route" for line in stage.problems]


def test_a_run_that_ended_since_the_listing_stops_the_sweep(place: Place) -> None:
    place.curate()
    place.curate(keep=STRICT)
    found = find_garbage(place.store, 1, time.time())
    place.curate()  # goes back to what was garbage when it was listed
    before = paths(place.store)
    with pytest.raises(StoreError, match="has ended since this was listed"):
        sweep(place.store, found)
    assert paths(place.store) == before
    check(place)


def _run(number: int, corpus: str, **parameters: Any) -> RunSummary:
    held = {"run_id": f"2026010{number}T000000-000000", "started": "", "input": "web", "output": "out", "flow": "toy"}
    return RunSummary(**held, corpus=f"out/corpus/{corpus}", parameters=parameters)


def test_versions_are_counted_by_corpora_of_the_whole_input() -> None:
    runs = [_run(1, "a"), _run(2, "b"), _run(3, "x", limit=10), _run(4, "c"), _run(5, "y", first_date="2026-01-01")]
    for keep, wanted in ((1, "yc"), (2, "ycxb"), (3, "ycxba"), (9, "ycxba")):
        kept, last = latest_versions(runs, keep)
        assert ("".join(kept), last) == (wanted, runs[3].run_id)
    assert [one.part for one in latest_versions(runs, 1)[0].values()] == ["first_date=2026-01-01", ""]
    runs = [_run(1, "p", limit=10), _run(2, "q", limit=10), _run(3, "r", limit=20)]
    kept, last = latest_versions(runs, 1)
    assert ("".join(kept), last) == ("rq", runs[1].run_id)


def test_a_shard_that_was_edited_before_does_not_look_as_if_it_had_lost_rows(place: Place) -> None:
    for rows in (9, 3, 7, 2):
        place.write("part-0", [sentence(row) for row in range(rows)])
        run = place.curate()
        check_unchanged(place.store, run, open_source(str(place.web), SourceColumns()))
