"""Huge documents and doubled ids through the stages: in batches of bounded size, and always in the same order."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pytest

from operators.base import Annotator, execution
from operators.safety.tags import remove_tags
from tasks import annotate
from tasks.store import Store
from tasks.summary import Status
from tasks.verify import verify
from tests.bad_input import ROUTES, chain, lines, packed, put, said, stand_ins
from tests.tasks.test_bad_input import corpus_of, files_of
from tests.toys import Judged, Picky, Words


class Batches(Annotator):
    """Appends how much text each batch holds to a file; refuses none."""

    version: ClassVar[str] = "1"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    adds: ClassVar[pa.Schema] = pa.schema([("size", pa.int64())])

    log: str = execution("")

    def __call__(self, table: pa.Table) -> pa.Table:
        sizes = [len(text) for text in table.column("text").to_pylist()]
        with Path(self.log).open("a") as stream:
            stream.write(f"{table.num_rows} {sum(sizes)}\n")
        return pa.table({"size": sizes})


def test_a_batch_holds_a_bounded_amount_of_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotate, "BATCH_BYTES", 1000)
    sizes = [10, 990, 5, 2000, 1, 400, 400, 400, None, 999, 3, 3]
    texts = [None if size is None else "x" * size for size in sizes]
    put(Store(str(tmp_path / "web")), "a.parquet", packed({"id": [""] * 12, "text": texts}))
    log = tmp_path / "log"
    operators = {"batches": Batches(log=str(log)), "judged": Judged(), "tokens": Words()}
    summary = chain(str(tmp_path / "web"), str(tmp_path / "out"), annotators=operators)
    assert summary.stages[0].accounts.outcomes == {"ok": 11, "quarantined": 1}
    held = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    assert held == [(2, 1000), (1, 5), (1, 2000), (3, 801), (1, 400), (1, 999), (2, 6)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_huge_documents_beside_ordinary_ones_go_through_the_whole_chain(root: str, tmp_path: Path) -> None:
    huge = ["The mill stands by the river and nobody counts the stones in it. " * 160_000, "0123456789abcdef" * 65_536]
    texts = [*said("huge"), *huge, "word " * 1_000_000]
    put(Store(f"{root}/web"), "a.parquet", packed({"text": texts}))
    put(Store(f"{root}/web"), "b.jsonl", lines(*({"text": text} for text in texts)))
    with stand_ins(tmp_path) as engine:
        summary = chain(f"{root}/web", f"{root}/out", engine, shard_tokens=1_000_000)
    assert summary.status is Status.DONE, summary.messages
    real = [row for row in corpus_of(Store(f"{root}/out"), summary) if row["origin"] == "real"]
    assert Counter(remove_tags(row["text"]) for row in real) == Counter(texts * 2)
    assert verify(Store(f"{root}/out")).ok


def test_with_doubled_ids_every_order_of_work_gives_the_same_corpus(tmp_path: Path) -> None:
    """Rows of one id have one place in the corpus: what parts them is shard and ordinal, and not who came first."""
    web = Store(str(tmp_path / "web"))
    drawn = random.Random(0)
    for shard in range(6):
        texts = [*said(f"shard {shard}", 5), "The same text in every shard.", "The same text in every shard."]
        ids = [f"doc-{drawn.randrange(4)}" for _ in texts]
        put(web, f"part-{shard}.parquet", packed({"id": ids, "text": texts}))
    operators = {"picky": Picky(), "judged": Judged(), "tokens": Words()}
    made = []
    for number, workers in enumerate((1, 4, 4)):
        out = str(tmp_path / f"out-{number}")
        if number == 2:  # the last shards first, the others in a later run
            chain(str(tmp_path / "web" / "part-[345].parquet"), out, annotators=operators, workers=workers)
        summary = chain(web.url, out, annotators=operators, workers=workers, routes=ROUTES)
        assert summary.status is Status.DONE
        rows = corpus_of(Store(out), summary)
        assert Counter((row["source_shard"], row["source_ordinal"]) for row in rows) == Counter(
            (f"part-{shard}.parquet", row) for shard in range(6) for row in range(7)
        )
        corpus = next(one.folder for one in summary.stages if one.name == "corpus")
        made.append({path: digest for path, digest in files_of(Store(out)).items() if path.startswith(corpus)})
    assert made[0] and made[0] == made[1] == made[2]
