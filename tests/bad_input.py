"""Every kind of bad shard that we know of, with what has to become of each row, and the whole chain over them.

Real: every operator of ``curate_text`` (the harm scorer in the slow tests), stages, local executor, ledger, build. The
language model is a named fake that turns its prompt round: what is cut for it and what the gates say of its answers is
real.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from operators.base import Annotator
from operators.language.engine import EngineSettings, Sampling
from operators.language.identify import LanguageId
from operators.language.tokens import TokenCount
from operators.rephrase.wrap import WrapRephrase
from operators.route import Route
from operators.safety import harm_score
from operators.safety.harm_score import HarmScore
from operators.safety.tags import HarmTags
from tasks import preflight, rewrite, stages
from tasks.annotate import local_models
from tasks.corpus import CorpusPlan, build_corpus
from tasks.dataset import Dataset
from tasks.rewrite import Choice
from tasks.run import Run
from tasks.stage import Execution, Executor, Stage, run_stage
from tasks.store import Store
from tasks.summary import RunSummary
from tests.toys import FakeEngine

ROUTES = (("tag", "tokens >= 40 AND lang = 'en'"), ("keep", "tokens >= 1"))
CUT = "cannot be read"
NULL, EMPTY, UTF8 = "text is null", "text is empty", "text is not valid UTF-8"


@dataclass(frozen=True)
class Bad:
    """``rows``: text and reason of each row, one of them None. ``fails``: what the shard's one line says, where it is
    lost as a whole. ``raw``: bytes that the quarantine has to hold, by row."""

    name: str
    data: bytes
    rows: tuple[tuple[str | None, str | None], ...] = ()
    fails: str = ""
    raw: tuple[tuple[int, bytes], ...] = ()

    @property
    def kept(self) -> dict[int, str]:
        return {row: text for row, (text, reason) in enumerate(self.rows) if reason is None and text is not None}


def said(name: str, count: int = 3) -> list[str]:
    """Plain English that says which shard it is of; every third row is long enough to be tagged."""
    more = " Nobody counted the stones, and the miller went home before the rain came down on the hills again." * 2
    return [
        f"Row {row} of {name} tells of rivers and of stones in the old mill by the town." + more * (row % 3 == 0)
        for row in range(count)
    ]


def packed(columns: Any, **how: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), buffer, **how)
    return buffer.getvalue()


def lines(*values: Any) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def good(name: str, **how: Any) -> Bad:
    texts = said(name)
    columns = {"id": [f"{name}-{row}" for row in range(len(texts))], "text": texts}
    return Bad(name, packed(columns, **how), tuple((text, None) for text in texts))


def named(name: str) -> Bad:
    """A good shard under a name that is none of the good ones."""
    made = good(name)
    if name.endswith(".jsonl"):
        return Bad(name, lines(*[{"text": text} for text, _ in made.rows]), made.rows)
    return made


def columns(name: str, **held: Any) -> Bad:
    """Three good texts beside columns of other types."""
    texts = said(name)
    return Bad(name, packed({"text": texts, **held}), tuple((text, None) for text in texts))


def lost(name: str, data: bytes, fails: str = CUT) -> Bad:
    return Bad(name, data, fails=fails)


def damaged(data: bytes, at: int, count: int = 48) -> bytes:
    return data[:at] + bytes(byte ^ 0xFF for byte in data[at : at + count]) + data[at + count :]


STRANGE = (
    "\0" * 50 + "after the NULs",
    "".join(map(chr, range(32))) + "\x7f\x85 control characters",
    "שלום \u202eعربي\u202c \u2066x\u2069 right to left",
    "👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 e\u0301 " * 30,
    "\u2028\u2029\ufeff\u200b",
    " \t\n",
    "\ufffe\uffff\U0010ffff noncharacters",
    "<|potentially_unsafe_content|> brings its own tag <|endoftext|>",
)
BAD_BYTES = b"caf\xe9 \xff"
BROKEN_LINES = (
    (b'{"text": "cut o', "not valid JSON"),
    (b"[1, 2]", "not a JSON object"),
    (b'{"text": 7}', "text is int, not a string"),
    (b'{"text": "' + BAD_BYTES + b'"}', "not valid JSON"),
    (rb'{"text": "\ud800 alone"}', "not valid JSON"),
    (b'{"text": NaN}', "not valid JSON"),
    (b'{"text": "x", "id": ' + b"[" * 2000 + b"]" * 2000 + b"}", "not valid JSON (depth"),
    (b"\0\0\0\0", "not valid JSON"),
)


def _bad_values() -> Iterator[Bad]:
    first, last = said("values")[:2]
    held = pa.array([first.encode(), BAD_BYTES, None, b"", last.encode()], pa.binary())
    rows = ((first, None), (None, UTF8), (None, NULL), (None, EMPTY), (last, None))
    yield Bad("values.parquet", packed({"id": list("abcde"), "text": held}), rows, raw=((1, BAD_BYTES),))
    unchecked = pa.Array.from_buffers(pa.string(), 5, held.buffers())
    yield Bad("values-string.parquet", packed({"id": list("abcde"), "text": unchecked}), rows, raw=((1, BAD_BYTES),))
    bad = [line for line, _ in BROKEN_LINES]
    body = b"\n".join([lines({"text": first}).strip(), *bad, b"", b"  ", lines({"text": last}).strip()])
    whole = ((first, None), *((None, why) for _, why in BROKEN_LINES), (last, None))
    yield Bad("lines.jsonl", b"\xef\xbb\xbf" + body, whole, raw=tuple(enumerate(bad, 1)))
    absent = lines({"text": None}, {"text": ""}, {}, {"text": last})
    yield Bad("absent.jsonl.gz", gzip.compress(absent), ((None, NULL), (None, EMPTY), (None, NULL), (last, None)))
    yield Bad("strange.parquet", packed({"text": list(STRANGE)}), tuple((one, None) for one in STRANGE))
    yield Bad("strange.jsonl", lines(*({"text": one} for one in STRANGE)), tuple((one, None) for one in STRANGE))


def _bad_files() -> Iterator[Bad]:
    whole = packed({"id": [str(n) for n in range(900)], "text": said("whole", 900)}, write_page_checksum=True)
    page = whole[: len(whole) // 2]
    text = lines(*({"text": one} for one in said("cut", 900)))
    yield lost("cut.parquet", whole[: len(whole) * 2 // 3])
    yield lost("no-tail.parquet", whole[:-3])
    yield lost("overwritten.parquet", damaged(whole, len(page)))
    beside = {
        "text": said("beside"),
        "url": ["https://example.org/0", "https://example.org/1", "https://example.org/2"],
    }
    beside_bytes = packed(beside, compression="none", use_dictionary=False, write_page_checksum=True)
    yield lost("url-page.parquet", beside_bytes.replace(b"example.org/1", b"exbmple.org/1"))
    yield lost("footer.parquet", damaged(whole, len(whole) - 200))
    yield lost("encrypted.parquet", b"PARE" + whole[4:-4] + b"PARE")
    yield lost("html.parquet", b"<html>not found</html>" * 9)
    yield lost("zero.parquet", b"")
    yield lost("cut.jsonl.gz", gzip.compress(text)[:-20])
    yield lost("cut.jsonl.zst", zstandard.compress(text)[:-20])
    yield lost("damaged.jsonl.gz", damaged(gzip.compress(text), 300))
    yield lost("no-gzip.jsonl.gz", text)
    yield lost("no-zstd.jsonl.zst", text)


def _schemas() -> Iterator[Bad]:
    yield lost("no-text.parquet", packed({"content": ["x"]}), "no column 'text'")
    yield lost("number.parquet", packed({"text": [1, 2]}), "holds int64, not text")
    yield lost("nested.parquet", packed({"text": [{"x": "y"}]}), "holds struct.*, not text")
    yield lost("list.parquet", packed({"text": [["x"]]}), "holds list.*, not text")
    yield lost("twice.parquet", packed(pa.table([["a"], ["b"]], names=["text", "text"])), "2 columns are named 'text'")
    twice = pa.table([said("urls"), ["a"] * 3, ["b"] * 3], names=["text", "url", "url"])
    yield lost("url-twice.parquet", packed(twice), "2 columns are named 'url'")
    yield columns("extra.parquet", more=[1, 2, 3], lang=["x", "y", "z"], status=["s"] * 3, route=[None] * 3)
    yield columns("id-int.parquet", id=[3, 2, 1])
    yield columns("id-nan.parquet", id=[1.5, float("nan"), float("nan")])
    yield columns("id-bytes.parquet", id=[b"ok", BAD_BYTES, None])
    yield columns("id-fixed.parquet", id=pa.array([b"\xff" * 16, b"b" * 16, None], pa.binary(16)))
    yield columns("id-nested.parquet", id=[{"a": [1]}, None, {"a": None}])
    yield columns("id-empty.parquet", id=["", "", None])
    yield columns("url-types.parquet", url=[[1], None, [2, 3]], date=pa.array([0, 1, None], pa.timestamp("us", "UTC")))


def _layouts() -> Iterator[Bad]:
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    yield Bad("no-rows.parquet", packed(schema.empty_table()))
    buffer = io.BytesIO()
    pq.ParquetWriter(buffer, schema).close()
    yield Bad("no-groups.parquet", buffer.getvalue())
    texts = said("groups", 4)
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema) as writer:
        for part in ([], texts[:2], [], texts[2:], []):
            rows = {"id": [f"groups-{texts.index(text)}" for text in part], "text": part}
            writer.write_table(pa.table(rows, schema=schema))
    yield Bad("empty-groups.parquet", buffer.getvalue(), tuple((text, None) for text in texts))
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst"):
        yield Bad(f"empty-{name}", b"")
    yield Bad("blank.jsonl", b"\n\n  \n")
    yield Bad("empty-gzip.jsonl.gz", gzip.compress(b""))
    for codec in ("none", "snappy", "gzip", "brotli", "lz4", "zstd"):
        yield good(f"codec-{codec}.parquet", compression=codec, data_page_version="2.0", use_dictionary=False)
    yield good("old-format.parquet", version="1.0", compression="gzip", use_dictionary=True, row_group_size=1)
    large = said("large.parquet")
    yield Bad("large.parquet", packed({"text": pa.array(large, pa.large_string())}), tuple((t, None) for t in large))
    often = said("dictionary.parquet", 2) * 40
    table = {"text": pa.array(often).dictionary_encode(), "id": [f"often-{n}" for n in range(80)]}
    yield Bad("dictionary.parquet", packed(table), tuple((text, None) for text in often))


def _doubles() -> Iterator[Bad]:
    """Ids that come back within a shard, across shards and formats, with the same text and with another."""
    for name in ("double-a.parquet", "double-b.parquet"):
        texts = [*said(name, 3), "The same text."]
        yield Bad(name, packed({"id": ["d0", "d0", "d1", "d2"], "text": texts}), tuple((text, None) for text in texts))
    texts = ["The same text.", "The same text.", *said("double-c", 1)]
    rows = [{"id": one, "text": text} for one, text in zip(("d2", "d2", "d0"), texts, strict=True)]
    yield Bad("double-c.jsonl", lines(*rows), tuple((text, None) for text in texts))


NAMES = (
    "with space.parquet",
    "p%20q.parquet",
    "p q.parquet",
    "hash#tag.parquet",
    "question?x=1&y=2.parquet",
    "-rf.parquet",
    "--help.jsonl",
    "ünïcode/日本語/шард.parquet",
    "caf\u00e9.parquet",
    "cafe\u0301.parquet",
    "same/slug.parquet",
    "same_slug.parquet",
    "same slug.jsonl",
    "ending.parquet",
    "ending.jsonl",
    "CASE.parquet",
    "case.parquet",
    "double::colon.parquet",
    "star*[1]{2}.parquet",
    "quote'\"`$(x).parquet",
    "~/tilde.parquet",
    "dots...parquet",
    "n" * 200 + ".parquet",
    "/".join(["deep"] * 40) + ".parquet",
)

BAD: tuple[Bad, ...] = (
    good("00-good.parquet"),
    *_bad_values(),
    *_bad_files(),
    *_schemas(),
    *_layouts(),
    *_doubles(),
    *map(named, NAMES),
)
"""The first is what the preflight looks at."""

HIDDEN_NAMES = ("_temporary/part.parquet", ".part.parquet.crc.parquet", "x/_SUCCESS.parquet", "notes.txt")


def write(root: str, shards: Sequence[Bad]) -> Store:
    store = Store(root)
    for one in shards:
        put(store, one.name, one.data)
    return store


def put(store: Store, name: str, data: bytes) -> None:
    path = store.absolute(name)
    if store.local:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)
    else:
        store.fs.pipe_file(path, data)


@cache
def harm_model() -> Any:
    """The real scorer, trained once a process: it takes some seconds."""
    paths = local_models(HarmScore().models())
    return harm_score.fit(harm_score.read_graded(paths["graded"]), harm_score.ordinary_prose(paths["neutral"]))


@contextmanager
def stand_ins(folder: Path, trained: bool = True) -> Iterator[EngineSettings]:
    """The fake engine in place of a model; one training of the harm scorer for all, or none: then it says 0."""

    def setup(self: HarmScore, models: Mapping[str, Path]) -> None:
        self._model = harm_model() if trained else lambda texts: np.zeros(len(texts))

    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HarmScore, "setup", setup)
        patch.setattr(rewrite, "load_engine", lambda settings, path: FakeEngine(folder / "prompts"))
        yield EngineSettings(model=str(model), kind="transformers")


def chain(
    source_url: str,
    output_url: str,
    engine: EngineSettings | None = None,
    annotators: Mapping[str, Annotator] | None = None,
    carried: Mapping[str, str] | None = None,
    workers: int = 2,
    routes: Sequence[tuple[str, str]] = ROUTES,
    shard_tokens: int = 2000,
) -> RunSummary:
    """The stages of ``curate_text`` without Prefect. ``annotators``: others than its own, the last counts tokens."""
    output = Store(output_url)
    source = preflight.source(source_url, dict(carried or {}), None)
    preflight.output(output_url, source, source_url, single_writer=False)
    run = Run("bad", {}, source_url, output)
    execution = Execution(Executor.LOCAL, workers=workers)

    def do(stage: Stage) -> Dataset:
        return run.add(run_stage(stage, output, execution))

    own: dict[str, Annotator] = {"language": LanguageId(), "harm_score": HarmScore(), "tokens": TokenCount()}
    made: list[Dataset] = []
    for name, operator in (annotators or own).items():
        made.append(do(stages.annotate(name, operator, [source], output)))
        source = source.with_contents(run.contents(name))
    routed = do(stages.annotate("route", Route(routes=tuple(routes)), made, output))
    synthetic = None
    if engine is not None:
        choice = Choice("route", ("keep", "tag"), 1.0, 0)
        wrap = WrapRephrase()
        sampling = Sampling(max_tokens=512)
        written = do(stages.rewrite("rephrase", wrap, engine, sampling, choice, [source, routed], output))
        synthetic = (written, [do(stages.annotate("rephrase_tokens", TokenCount(), [written], output))])
    real = (source, [made[-1], routed, *made[:-1]])
    plan = CorpusPlan(real, synthetic, ("keep", "tag"), ("tag",), HarmTags(p=0.2, seed=0), None, shard_tokens, 0)
    build_corpus(plan, output, do, run)
    return run.finish(max_quarantine=1.0)
