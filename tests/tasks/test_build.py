"""The build on a local folder and on S3: cuts, tags, partitions, order, resume. Toys stand in for the models."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.route import Route
from operators.safety.tags import TAG, HarmTags, remove_tags
from tasks import stages
from tasks.build import CORPUS
from tasks.corpus import CORPUS_STAGE, REAL, SYNTHETIC, CorpusPlan, build_corpus
from tasks.dataset import HIDDEN, Dataset, Shard
from tasks.run import Run
from tasks.source import SourceColumns, open_source
from tasks.stage import Execution, Executor, Stage, StageResult, run_stage
from tasks.store import Store
from tasks.summary import Status
from tests.toys import Judged, Words

LOCAL = Execution(executor=Executor.LOCAL)
ROUTES = (("keep", "harm_score <= 1 AND lang = 'en' AND tokens > 0"), ("tag", "harm_score >= 4 AND lang = 'en'"))


def text_of(row: int) -> str:
    """Every tenth row is to be tagged, every seventh is German and dropped, every ninth is of middling harm."""
    marks = "harm=5" if row % 10 == 0 else "lang=de" if row % 7 == 0 else "harm=3" if row % 9 == 0 else "harm=0"
    return f"Row {row} {marks} " + " ".join(f"w{row * 31 + place}" for place in range(10 + row * 17 % 40))


def route_of(row: int) -> str:
    return "tag" if row % 10 == 0 else "drop" if row % 7 == 0 or row % 9 == 0 else "keep"


def write_web(folder: Path, shards: int, rows: int) -> Path:
    folder.mkdir()
    for shard in range(shards):
        numbers = range(shard * rows, (shard + 1) * rows)
        columns = {
            "id": [f"doc-{row}" for row in numbers],
            "text": [text_of(row) for row in numbers],
            "url": [f"https://example.org/{row}" for row in numbers],
            "date": ["2026-01-01"] * rows,
            "crawl": [f"crawl-{row % 3}" for row in numbers],
        }
        pq.write_table(pa.table(columns), folder / f"part-{shard}.parquet")
    return folder


def write_rephrases(store: Store, shards: int, rows: int, rejected: int) -> Dataset:
    """What a rewrite stage leaves: one rephrase a row, of which one in ``rejected`` was rejected."""
    found = []
    for shard in range(shards):
        numbers = range(shard * rows, (shard + 1) * rows)
        fine = [row % rejected != 0 for row in numbers]
        words = [" ".join(f"s{row}-{place}" for place in range(15 + row * 13 % 30)) for row in numbers]
        table = pa.table(
            {
                "id": [f"doc-{row}/qa-0" for row in numbers],
                "parent_id": [f"doc-{row}" for row in numbers],
                "source_shard": [f"part-{shard}.parquet"] * rows,
                "source_ordinal": pa.array(range(rows), pa.int64()),
                "text": pa.array([word if ok else None for word, ok in zip(words, fine, strict=True)], pa.string()),
                "style": ["qa"] * rows,
                "status": ["ok" if ok else "rejected" for ok in fine],
            }
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        data = sink.getvalue().to_pybytes()
        path = f"rephrase/toy/part-{shard}.parquet"
        place = store.absolute(path)
        store.fs.makedirs(place.rsplit("/", 1)[0], exist_ok=True)
        store.fs.pipe_file(place, data)
        content = hashlib.sha256(data).hexdigest()
        found.append(Shard(name=f"part-{shard}.parquet", path=path, size=len(data), content=content))
    return Dataset(store, tuple(found))


@dataclass
class Built:
    corpus: Dataset | None
    run: Run
    results: dict[str, StageResult] = field(default_factory=dict)

    def tables(self) -> list[pa.Table]:
        assert self.corpus is not None
        found = []
        for shard in self.corpus.shards:
            with self.corpus.store.fetched(shard.path) as (local, _):
                found.append(pq.read_table(local))
        return found

    def rows(self) -> list[dict[str, Any]]:
        return [row for table in self.tables() for row in table.to_pylist()]

    @property
    def folder(self) -> str:
        return self.results[CORPUS_STAGE].summary.folder

    @property
    def contents(self) -> list[str]:
        assert self.corpus is not None
        return [shard.content for shard in self.corpus.shards]


def build(
    web: Path,
    root: str,
    synthetic: tuple[int, int] | None = None,
    share: float | None = None,
    shard_tokens: int = 10**9,
    workers: int = 1,
    routes: Sequence[tuple[str, str]] = ROUTES,
    tags: float = 0.2,
    mapping: tuple[tuple[str, str], ...] = (),
    rejected: int = 8,
) -> Built:
    """Annotates with toys, then builds. ``synthetic``: shards and rows of ready rephrases."""
    output = Store(root)
    execution = Execution(Executor.LOCAL, workers=workers)
    built = Built(None, Run("toy", {}, str(web), output))

    def do(stage: Stage) -> Dataset:
        result = run_stage(stage, output, execution)
        built.results[result.summary.name] = result
        return built.run.add(result)

    source = open_source(str(web), SourceColumns(mapping=mapping))
    judged = do(stages.annotate("judged", Judged(), [source], output))
    source = source.with_contents(built.run.contents("judged"))
    words = do(stages.annotate("tokens", Words(), [source], output))
    routed = do(stages.annotate("route", Route(routes=tuple(routes)), [judged, words], output))
    mixed = None
    if synthetic is not None:
        rephrases = write_rephrases(output, *synthetic, rejected)
        mixed = (rephrases, [do(stages.annotate("rephrase_tokens", Words(), [rephrases], output))])
    plan = CorpusPlan(
        real=(source, [words, routed, judged]),
        synthetic=mixed,
        keep_routes=("keep", "tag"),
        tag_routes=("tag",),
        tags=HarmTags(p=tags),
        synthetic_share=share,
        shard_tokens=shard_tokens,
        seed=0,
    )
    built.corpus = build_corpus(plan, output, do, built.run)
    return built


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """Three shards of 40 rows with a column of their own."""
    return write_web(tmp_path / "web", 3, 40)


def test_every_kept_row_comes_once_and_the_accounts_close_over_all_steps(web: Path, root: str) -> None:
    built = build(web, root, synthetic=(3, 40))
    kept = [row for row in range(120) if route_of(row) != "drop"]
    rephrased = [row for row in range(120) if row % 8]
    wanted = [f"doc-{row}" for row in kept] + [f"doc-{row}/qa-0" for row in rephrased]
    rows = built.rows()
    assert sorted(row["id"] for row in rows) == sorted(wanted)
    summaries = {name: result.summary for name, result in built.results.items()}
    assert all(one.status is Status.DONE and one.accounts.closed() for one in summaries.values())
    real, made = summaries["corpus-scatter-real"].accounts, summaries["corpus-scatter-synthetic"].accounts
    assert real.outcomes == {"dropped": 120 - len(kept), "kept": len(kept)}
    assert made.outcomes == {"kept": 105, "skipped": 15}
    assert summaries["corpus-resolve-real"].accounts.outcomes == {"dropped": 120 - len(kept), "eligible": len(kept)}
    gathered = summaries[CORPUS_STAGE].accounts
    assert gathered.rows_in == gathered.rows_out == real.rows_out + made.rows_out == len(rows)
    assert gathered.outputs == {"real": len(kept) - 12, "synthetic": 105, "tagged": 12}
    assert gathered.tokens == {
        name: sum(row["tokens"] for row in rows if row["origin"] == name) for name in (REAL, SYNTHETIC)
    }
    assert not built.run.summary.messages


def test_rows_say_where_they_come_from(web: Path, root: str) -> None:
    built = build(web, root, synthetic=(3, 40))
    assert all(table.schema.remove_metadata() == CORPUS for table in built.tables())
    rows = {row["id"]: row for row in built.rows()}
    one, made = rows["doc-41"], rows["doc-41/qa-0"]
    assert (one["text"], one["tokens"]) == (text_of(41), len(text_of(41).split()))
    assert (one["origin"], one["parent_id"], one["style"], one["tagged"]) == ("real", None, None, False)
    assert (one["url"], one["date"], one["lang"]) == ("https://example.org/41", "2026-01-01", "en")
    assert (one["harm_score"], one["route"]) == (0, "keep")
    assert (one["source_shard"], one["source_ordinal"]) == ("part-1.parquet", 1)
    assert (made["origin"], made["parent_id"], made["style"], made["tagged"]) == ("synthetic", "doc-41", "qa", False)
    assert (made["source_shard"], made["source_ordinal"], made["url"]) == ("part-1.parquet", 1, None)


def test_tags_stand_in_tag_routes_alone_and_come_off_byte_for_byte(web: Path, root: str) -> None:
    rows = build(web, root, synthetic=(3, 40)).rows()
    tagged = [row for row in rows if row["tagged"]]
    assert {row["route"] for row in tagged} == {"tag"}
    assert sorted(row["id"] for row in tagged) == sorted(f"doc-{row}" for row in range(0, 120, 10))
    assert not [row for row in rows if TAG in row["text"] and not row["tagged"]]
    assert sum(TAG in row["text"] for row in tagged) > 6
    for row in tagged:
        plain = text_of(int(row["id"].removeprefix("doc-")))
        assert remove_tags(row["text"]) == plain
        assert row["tokens"] == len(plain.split()) + row["text"].count(TAG)


SHARE = 0.3


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """4,800 documents and their rephrases at 7 to 3 in tokens, in about three files."""
    folder = tmp_path_factory.mktemp("mixed")
    web = write_web(folder / "web", 4, 1200)
    return build(web, str(folder / "store"), synthetic=(4, 1200), share=SHARE, shard_tokens=50_000, tags=0.05)


def test_the_share_asked_for_is_the_share_there_is(mixed: Built) -> None:
    rows = mixed.rows()
    tokens = Counter[str]()
    for row in rows:
        tokens[row["origin"]] += row["tokens"]
    realised = tokens["synthetic"] / tokens.total()
    assert abs(realised - SHARE) < 0.005
    mix = mixed.run.summary.mix
    assert mix["realised_synthetic_share"] == pytest.approx(realised)
    assert mix["requested_synthetic_share"] == SHARE
    assert (mix["real_tokens"], mix["synthetic_tokens"]) == (tokens["real"], tokens["synthetic"])
    assert mixed.results["corpus-scatter-synthetic"].summary.accounts.outcomes["not_sampled"] > 0
    # the scarce side is kept whole: the corpus is as large as the share allows
    assert "not_sampled" not in mixed.results["corpus-scatter-real"].summary.accounts.outcomes


def test_every_window_of_a_file_holds_the_share_of_its_file(mixed: Built) -> None:
    window = 5_000
    for table in mixed.tables():
        counts = table.column("tokens").to_pylist()
        synthetic = [name == "synthetic" for name in table.column("origin").to_pylist()]
        pairs = list(zip(counts, synthetic, strict=True))
        overall = sum(count for count, made in pairs if made) / sum(counts)
        inside, of_it, windows = 0, 0, 0
        for count, made in pairs:
            inside, of_it = inside + count, of_it + count * made
            if inside >= window:
                assert abs(of_it / inside - overall) < 0.02
                inside, of_it, windows = 0, 0, windows + 1
        assert windows >= 5


def test_every_row_lies_in_one_file_and_the_files_are_of_a_size(mixed: Built) -> None:
    tables = mixed.tables()
    ids = [name for table in tables for name in table.column("id").to_pylist()]
    assert len(ids) == len(set(ids)) == mixed.results[CORPUS_STAGE].summary.accounts.rows_out
    sizes = [sum(table.column("tokens").to_pylist()) for table in tables]
    assert len(tables) > 2 and all(abs(size - 50_000) < 10_000 for size in sizes)
    assert mixed.corpus is not None
    names = [shard.name for shard in mixed.corpus.shards]
    assert names == [f"part-{number:05d}-of-{len(tables):05d}" for number in range(len(tables))]


def test_neighbours_of_the_source_are_no_neighbours_of_the_corpus(mixed: Built) -> None:
    shards = [name for table in mixed.tables() for name in table.column("source_shard").to_pylist()]
    same = sum(one == other for one, other in zip(shards, shards[1:], strict=False)) / len(shards)
    assert same < 0.3, "with four shards in any order a quarter of neighbours share theirs"


def test_workers_change_no_byte(web: Path, root: str) -> None:
    one = build(web, f"{root}/one", synthetic=(3, 40), share=0.4, shard_tokens=1500)
    three = build(web, f"{root}/three", synthetic=(3, 40), share=0.4, shard_tokens=1500, workers=3)
    assert len(one.contents) > 1
    assert one.contents == three.contents and one.folder == three.folder


def test_a_second_build_does_nothing(web: Path, root: str) -> None:
    first = build(web, root, shard_tokens=1000)
    again = build(web, root, shard_tokens=1000)
    assert first.contents == again.contents
    assert [result.summary.shards_made for result in again.results.values()] == [0] * len(again.results)


def test_a_changed_shard_makes_a_corpus_of_its_own_and_leaves_the_old_one(web: Path, root: str) -> None:
    first = build(web, root, shard_tokens=1000)
    store = Store(root)
    before = {entry.path: store.read(entry.path) for entry in store.entries(first.folder)}
    table = pq.read_table(web / "part-1.parquet")
    texts = ["harm=0 something else altogether", *table.column("text").to_pylist()[1:]]
    pq.write_table(table.set_column(1, "text", [texts]), web / "part-1.parquet")
    other = build(web, root, shard_tokens=1000)
    assert other.folder != first.folder
    assert {entry.path: store.read(entry.path) for entry in store.entries(first.folder)} == before
    assert other.results["corpus-scatter-real"].summary.shards_before == 2
    assert "harm=0 something else altogether" in [row["text"] for row in other.rows()]


def test_a_lost_file_is_gathered_again_alone(web: Path, root: str) -> None:
    first = build(web, root, shard_tokens=1000)
    assert first.corpus is not None and len(first.contents) > 2
    store = Store(root)
    store.fs.rm_file(store.absolute(first.corpus.shards[1].path))
    again = build(web, root, shard_tokens=1000)
    summary = again.results[CORPUS_STAGE].summary
    assert (summary.shards_made, summary.shards_before) == (1, len(first.contents) - 1)
    assert again.contents == first.contents


@pytest.mark.parametrize("synthetic", [None, (3, 40)])
def test_columns_that_are_carried_along_arrive(web: Path, root: str, synthetic: tuple[int, int] | None) -> None:
    built = build(web, root, synthetic=synthetic, mapping=(("snapshot", "crawl"),))
    rows = built.rows()
    real = [row for row in rows if row["origin"] == "real"]
    assert real and all(row["snapshot"] == f"crawl-{int(row['id'][4:]) % 3}" for row in real)
    made = [row for row in rows if row["origin"] == "synthetic"]
    assert len(made) == (105 if synthetic else 0) and all(row["snapshot"] is None for row in made)


def test_a_build_that_keeps_nothing_says_so(web: Path, root: str) -> None:
    built = build(web, root, routes=(("keep", "harm_score > 100"),))
    assert built.corpus is None
    assert "nothing was kept" in "; ".join(built.run.summary.messages)
    assert built.results["corpus-scatter-real"].summary.accounts.outcomes == {"dropped": 120}
    assert not Store(root).entries(CORPUS_STAGE)
    assert built.run.finish(1.0).status is Status.FAILED


def test_a_failed_shard_of_the_build_leaves_no_corpus_with_a_hole(web: Path, root: str) -> None:
    build(web, root)
    store = Store(root)
    scattered = store.entries(f"{HIDDEN}/corpus-scatter-real")
    for entry in [*store.entries(CORPUS_STAGE), *scattered]:
        store.fs.rm_file(store.absolute(entry.path))
    store.fs.pipe_file(store.absolute(scattered[0].path), b"a stranger")
    broken = build(web, root)
    assert broken.corpus is None and not store.entries(CORPUS_STAGE)
    assert broken.results["corpus-scatter-real"].summary.status is Status.FAILED
    assert broken.run.finish(1.0).status is Status.FAILED


def test_a_mix_with_nothing_synthetic_is_not_silent(web: Path, root: str) -> None:
    built = build(web, root, synthetic=(3, 40), share=0.5, rejected=1)
    assert {row["origin"] for row in built.rows()} == {"real"}
    assert "no synthetic text to mix" in "; ".join(built.run.summary.messages)
    assert built.run.summary.mix["realised_synthetic_share"] == 0.0
