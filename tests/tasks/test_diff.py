"""Diff of real versions: a changed threshold, model, prompt, seed, shard; the join against a plain count."""

from __future__ import annotations

import errno
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from operators.rephrase import wrap
from tasks import rewrite
from tasks.diff import compare as comparing
from tasks.diff import join as joining
from tasks.diff.compare import compare
from tasks.diff.facts import Difference, StageChange
from tasks.diff.join import join, matched
from tasks.diff.recipes import changes
from tasks.diff.terminal import print_difference
from tasks.lineage.reading import Tally
from tasks.store import Store, StoreError
from tasks.summary import RunSummary
from tasks.version import open_version
from tests.traced import KEEP, SHARDS, Paraphraser, curate, write_model, write_web

STRICTER = f"{KEEP} AND tokens > 40"


@dataclass
class World:
    """A source and a model, and one run that the others are compared with."""

    folder: Path
    web: Path
    model: str
    base: RunSummary

    @property
    def root(self) -> str:
        return str(self.folder / "out")

    def diff(self, other: RunSummary) -> Difference:
        return compare(open_version(f"{self.root}@{self.base.run_id}"), open_version(f"{other.output}@{other.run_id}"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    patch = pytest.MonkeyPatch()
    patch.setattr(rewrite, "load_engine", lambda settings, folder: Paraphraser())
    folder = tmp_path_factory.mktemp("world")
    web, model = write_web(folder / "web"), write_model(folder / "model")
    yield World(folder, web, model, curate(web, str(folder / "out"), model))
    patch.undo()


def changed(found: Difference) -> dict[str, StageChange]:
    """Every stage that is not the same. No fingerprint changes without a reason that is told."""
    for one in found.stages:
        assert one.same or one.a == one.b or None in (one.a, one.b) or one.causes or one.follows, one
    return {one.stage: one for one in found.stages if not one.same}


def rows(run: RunSummary) -> Counter[tuple[str, str]]:
    store, prefix = Store(run.output), run.corpus.removeprefix(f"{run.output}/")
    tables = []
    for entry in store.entries(prefix):
        with store.fetched(entry.path) as (local, _):
            tables.append(pl.read_parquet(local))
    frame = pl.concat(tables)
    return Counter(zip(frame["id"], frame["text"], strict=True))


def counted(a: Counter[tuple[str, str]], b: Counter[tuple[str, str]]) -> tuple[int, int, int, int]:
    """same, changed, only in a, only in b: by plain counters over every row."""
    same = (a & b).total()
    ids = [Counter[str](), Counter[str]()]
    for side, many in zip(ids, (a, b), strict=True):
        for (name, _), count in many.items():
            side[name] += count
    both = (ids[0] & ids[1]).total()
    return same, both - same, ids[0].total() - both, ids[1].total() - both


def told(found: Difference) -> tuple[int, int, int, int]:
    assert found.corpus is not None
    return found.corpus.same, found.corpus.changed, found.corpus.only_a, found.corpus.only_b


def test_a_version_and_itself_are_the_same_and_nothing_is_read(world: World) -> None:
    found = world.diff(world.base)
    assert found.same and not changed(found) and not found.parameters
    assert found.corpus is not None and (found.corpus.files_read, found.corpus.bytes_read) == (0, 0)
    assert told(found) == (rows(world.base).total(), 0, 0, 0)


def test_another_root_with_the_same_result_is_the_same(world: World) -> None:
    found = world.diff(curate(world.web, str(world.folder / "twin"), world.model))
    assert found.same and [one.name for one in found.parameters] == ["output"]


def test_a_changed_threshold_is_named_and_everything_else_follows(world: World) -> None:
    other = curate(world.web, world.root, world.model, keep=STRICTER)
    found = world.diff(other)
    assert not found.same
    assert [(one.name, one.a, one.b) for one in found.parameters] == [("keep", KEEP, STRICTER)]
    assert [(one.name, one.a, one.b) for one in changed(found)["route"].causes] == [
        ("config.routes.keep", KEEP, STRICTER)
    ]
    assert {"judged", "tokens"}.isdisjoint(changed(found))
    assert (changed(found)["rephrase"].causes, changed(found)["rephrase"].follows) == ([], ["route"])
    assert changed(found)["rephrase_tokens"].follows == ["rephrase"]
    assert {"corpus-scatter-real", "corpus-scatter-synthetic"} >= set(changed(found)["corpus"].follows) != set()
    assert found.source is not None and not found.source.any and found.source.same == 3
    routes = {one.name: (one.a, one.b) for one in found.routes}
    assert routes["keep"][0] > routes["keep"][1] and routes["tag"][0] == routes["tag"][1]
    assert told(found) == counted(rows(world.base), rows(other)) and told(found)[2] > 0
    lines = {(one.stage, one.line): (one.a, one.b) for one in found.accounts}
    assert lines["route", "rows in"] == (120, 120)
    kept = [next(one for one in run.stages if one.name == "corpus").accounts.rows_out for run in (world.base, other)]
    assert lines["corpus", "kept"] == tuple(kept)


def test_another_model_is_named_by_the_hash_of_its_weights(world: World) -> None:
    other = curate(world.web, world.root, write_model(world.folder / "other", b"other weights"))
    found = world.diff(other)
    causes = {one.name: (one.a, one.b) for one in changed(found)["rephrase"].causes}
    assert f"engine.weights: sha256 {causes['engine.weights'][0][:12]} → " in shown(found)
    assert list(causes) == ["engine.weights"] and len(set(causes["engine.weights"])) == 2
    moved = curate(world.web, world.root, write_model(world.folder / "moved"))
    again = world.diff(moved)
    assert again.same and [one.name for one in again.parameters] == ["model"], "a model is known by its content"


def test_a_changed_prompt_is_named_by_its_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    template, prompt = wrap.template, wrap.prompt
    monkeypatch.setattr(wrap, "template", lambda style: template(style) + (" Be brief." if style == "qa" else ""))
    monkeypatch.setattr(wrap, "prompt", lambda style, piece: prompt(style, piece) + " Be brief.")
    found = world.diff(curate(world.web, world.root, world.model))
    causes = changed(found)["rephrase"].causes
    assert [one.name for one in causes] == ["prompts.qa.v1.md"] and causes[0].a != causes[0].b
    assert found.corpus is not None and found.corpus.changed > 0 and not found.parameters


def test_another_seed_is_joined_by_hash(world: World) -> None:
    other = curate(world.web, world.root, world.model, seed=7)
    found = world.diff(other)
    assert found.corpus is not None and "by hash of the id" in found.corpus.how
    assert told(found) == counted(rows(world.base), rows(other)) and told(found)[1] > 0
    assert [(one.name, one.a, one.b) for one in changed(found)["corpus-resolve-real"].causes] == [("seed", 0, 7)]


@pytest.mark.parametrize("part_rows", [10, 10**6])
def test_the_join_by_hash_splits_and_comes_to_the_same(world: World, part_rows: int) -> None:
    other = curate(world.web, world.root, world.model, share=None, shard_tokens=500)
    versions = [open_version(f"{world.root}@{run.run_id}") for run in (world.base, other)]
    found = join(versions[0], versions[1], Tally(), part_rows)
    same, altered, only_a, only_b = counted(rows(world.base), rows(other))
    assert (found.same, found.changed, found.only_a.total(), found.only_b.total()) == (same, altered, only_a, only_b)
    assert only_b > 50 and only_a == 0
    assert found.only_b == Counter(synthetic=only_b)


def test_a_folder_and_a_bucket_are_compared_like_two_folders(world: World, s3: str) -> None:
    same = curate(world.web, f"{s3}/diff-{uuid.uuid4().hex[:8]}", world.model)
    assert world.diff(same).same
    other = curate(world.web, same.output, world.model, seed=7, share=None)
    found = world.diff(other)
    assert found.corpus is not None and 0 < found.corpus.bytes_read < 10**6
    assert told(found) == counted(rows(world.base), rows(other))


def test_the_join_by_place_comes_to_the_same_as_by_hash(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    other = curate(world.web, world.root, world.model, rephrase_share=0.6, share=None, shard_tokens=10**6)
    one = curate(world.web, world.root, world.model, share=None, shard_tokens=10**6)
    versions = [open_version(f"{world.root}@{run.run_id}") for run in (one, other)]
    by_place = join(versions[0], versions[1], Tally())
    assert "file by file" in by_place.how and by_place.only_a.total() > 0
    assert by_place.same == counted(rows(one), rows(other))[0]


def test_shards_that_were_added_removed_or_changed_are_named(world: World) -> None:
    web = write_web(world.folder / "web-2")
    table = pq.read_table(web / SHARDS[0])
    pq.write_table(table.slice(0, 30), web / SHARDS[0])
    pq.write_table(table.slice(0, 5), web / "new.parquet")
    (web / SHARDS[1]).unlink()
    other = curate(web, str(world.folder / "out-2"), world.model)
    found = world.diff(other)
    assert found.source is not None
    assert (found.source.added.first, found.source.removed.first) == (["new.parquet"], [SHARDS[1]])
    assert (found.source.changed.first, found.source.same) == ([SHARDS[0]], 1)
    judged = changed(found)["judged"]
    assert judged.a == judged.b and judged.shards is not None and judged.shards.same == 1
    assert told(found) == counted(rows(world.base), rows(other))


def test_a_run_without_a_corpus_is_compared_as_far_as_it_goes(world: World) -> None:
    found = world.diff(curate(world.web, str(world.folder / "bare"), world.model, build=False))
    assert found.corpus is None and found.corpus_note == "B made no corpus, so no rows are compared"
    assert not found.same and changed(found)["corpus"].b is None


ROWS = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("xyz")), max_size=12)


@settings(max_examples=60, deadline=None)
@given(ROWS, ROWS)
def test_rows_are_matched_as_often_as_both_sides_have_them(a: list[tuple[str, str]], b: list[tuple[str, str]]) -> None:
    frames = [
        pl.DataFrame(
            {"id": [i for i, _ in side], "origin": ["real"] * len(side), "text": [t for _, t in side]},
            schema={"id": pl.String, "origin": pl.String, "text": pl.String},
        ).select("id", "origin", pl.col("text").hash().alias("text_hash"))
        for side in (a, b)
    ]
    found = matched(*frames)
    plain = counted(Counter(a), Counter(b))
    assert (found.same, found.changed, found.only_a.total(), found.only_b.total()) == plain


def test_a_full_disk_is_one_line_with_the_remedy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:  # stands in for a disk without space
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(joining, "_split", full)
    versions = [open_version(f"{world.root}@{world.base.run_id}")] * 2
    other = curate(world.web, world.root, world.model, seed=3)
    versions[1] = open_version(f"{world.root}@{other.run_id}")
    with pytest.raises(StoreError, match="No space left on device; the join needs about 1 MiB there, or set TMPDIR"):
        join(*versions, Tally())


def test_values_are_named_by_their_dotted_place() -> None:
    a = {"config": {"routes": [["keep", "x"], ["tag", "y"]], "p": [1, 2]}, "version": "1"}
    b = {"config": {"routes": [["keep", "x"], ["tag", "z"]], "p": [1, 3]}, "version": "1", "more": True}
    assert [(one.name, one.a, one.b) for one in changes(a, b)] == [
        ("config.routes.tag", "y", "z"),
        ("config.p", [1, 2], [1, 3]),
        ("more", None, True),
    ]


def test_memory_is_bounded_by_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def spy(a: pl.DataFrame, b: pl.DataFrame) -> joining.Joined:
        sizes.append(len(a) + len(b))
        return matched(a, b)

    monkeypatch.setattr(joining, "matched", spy)
    version = open_version(f"{world.root}@{world.base.run_id}")
    other = curate(world.web, world.root, world.model, seed=3)
    total = rows(world.base).total() + rows(other).total()
    join(version, open_version(f"{world.root}@{other.run_id}"), Tally(), part_rows=40)
    assert len(sizes) == -(-total // 40) and sum(sizes) == total and max(sizes) < 100


def shown(found: Difference) -> str:
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        print_difference(found, console)
    return capture.get()


def test_the_terminal_says_what_changed_in_eighty_columns(world: World) -> None:
    text = shown(world.diff(curate(world.web, world.root, world.model, keep=STRICTER)))
    assert f"B {STRICTER}" in text and "≠ rephrase  follows from route" in text and "= judged" in text
    assert "config.routes.keep" in text and "joined " in text
    assert "only in A" in text and "rows are in both with the same text" in text
    assert all(len(line) <= 80 for line in text.splitlines()[2:])
    assert "the same: every stage, every shard, every row" in shown(world.diff(world.base))


def test_the_corpora_are_not_read_where_the_records_say_that_they_are_equal(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "join", lambda *sides: pytest.fail("read"))
    assert world.diff(world.base).same
