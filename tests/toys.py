"""Small operators of known behaviour for contract tests, at module level so that they can travel to workers."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from operators.base import Annotator, Rewriter, execution
from operators.language.engine import Completion, FinishReason, Request, Sampling


def documents(count: int, start: int = 0) -> pa.Table:
    """Rows of plain English of known content."""
    rows = range(start, start + count)
    return pa.table(
        {
            "id": [f"doc-{row}" for row in rows],
            "text": [
                f"Document {row} tells of rivers, stones and the number {row * 7}. It ends with {row}." for row in rows
            ],
            "url": [f"https://example.org/{row}" for row in rows],
            "date": ["2026-01-01"] * count,
        }
    )


class Length(Annotator):
    """Characters of the text. ``offset`` changes the output, ``slow`` only the time."""

    version: ClassVar[str] = "1"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    adds: ClassVar[pa.Schema] = pa.schema([("length", pa.int64())])

    offset: int = 0
    slow: float = execution(0.0)

    def __call__(self, table: pa.Table) -> pa.Table:
        time.sleep(self.slow)
        return pa.table({"length": [len(text) + self.offset for text in table.column("text").to_pylist()]})


class Picky(Annotator):
    """Raises on a text that holds ``poison``, refuses one that holds ``refuse`` with a reason."""

    version: ClassVar[str] = "1"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    adds: ClassVar[pa.Schema] = pa.schema([("fine", pa.bool_())])

    poison: str = "POISON"
    refuse: str = "REFUSE"

    def __call__(self, table: pa.Table) -> pa.Table:
        texts = table.column("text").to_pylist()
        if any(self.poison in text for text in texts):
            raise ValueError(f"cannot stomach {self.poison}")
        reasons = [f"holds {self.refuse}" if self.refuse in text else None for text in texts]
        return pa.table({"fine": pa.array([True] * len(texts)), "reason": pa.array(reasons, pa.string())})


class Stuck(Annotator):
    """Never comes back from a text that holds ``where``, until a file ``release`` exists."""

    version: ClassVar[str] = "1"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    adds: ClassVar[pa.Schema] = pa.schema([("length", pa.int64())])

    where: str
    release: str = execution("")

    def __call__(self, table: pa.Table) -> pa.Table:
        texts = table.column("text").to_pylist()
        while any(self.where in text for text in texts) and not (self.release and Path(self.release).exists()):
            time.sleep(0.05)
        return pa.table({"length": [len(text) for text in texts]})


class Reverse(Rewriter):
    """Asks for each sentence of a text to be turned round; refuses answers shorter than ``shortest``."""

    version: ClassVar[str] = "1"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    adds: ClassVar[pa.Schema] = pa.schema(
        [("text", pa.string()), ("part", pa.int32()), ("status", pa.string()), ("reason", pa.string())]
    )

    shortest: int = 0

    def requests(self, row: Mapping[str, Any]) -> list[Request]:
        pieces = [piece for piece in row["text"].split(". ") if piece]
        return [Request(part=part, messages=(("user", piece),)) for part, piece in enumerate(pieces)]

    def parse(self, row: Mapping[str, Any], completions: Sequence[tuple[Request, Completion]]) -> list[dict[str, Any]]:
        rows = []
        for request, completion in completions:
            fine = len(completion.text) >= self.shortest
            rows.append(
                {
                    "text": completion.text if fine else None,
                    "part": request.part,
                    "status": "ok" if fine else "rejected",
                    "reason": None if fine else "too short",
                }
            )
        return rows

    def row_id(self, parent_id: str, row: Mapping[str, Any]) -> str:
        return f"{parent_id}/reverse-{row['part']}"


class FakeEngine:
    """Stands in for a language model where a test needs its calls counted: answers with the prompt turned round.

    Every prompt it is given is appended to the file ``calls``; a prompt that holds FAIL comes back as an error.
    """

    name = "fake"

    def __init__(self, calls: Path, delay: float = 0.0) -> None:
        self.calls, self.delay = calls, delay

    def generate(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[tuple[Request, Completion]]:
        for request in requests:
            if request is None:
                continue
            time.sleep(self.delay)
            prompt = request.messages[-1][1]
            with self.calls.open("a") as stream:
                stream.write(prompt.replace("\n", " ") + "\n")
            if "FAIL" in prompt:
                yield request, Completion("", FinishReason.ERROR, 0, 0, error="engine refused the prompt")
            else:
                words = len(prompt.split())
                yield request, Completion(prompt[::-1], FinishReason.STOP, words, words)

    def score(self, texts: Sequence[str]) -> list[Any]:
        raise ValueError("the fake engine scores nothing")

    def describe(self) -> Mapping[str, str]:
        return {"engine": self.name}

    def close(self) -> None:
        """Nothing to free."""


class Crash(Length):
    """Ends its own process, as an out-of-memory killer would, at a text that holds ``where``.

    Once if ``marker`` names a file to leave behind, else every time.
    """

    where: str
    marker: str = execution("")

    def __call__(self, table: pa.Table) -> pa.Table:
        if any(self.where in text for text in table.column("text").to_pylist()):
            if not self.marker:
                os.kill(os.getpid(), signal.SIGKILL)
            if not Path(self.marker).exists():
                Path(self.marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(table)


class StuckOnce(Length):
    """Never comes back from the first text that holds ``where``; ``marker``, its process id, tells the next one."""

    where: str
    marker: str = execution("")

    def __call__(self, table: pa.Table) -> pa.Table:
        if any(self.where in text for text in table.column("text").to_pylist()) and not Path(self.marker).exists():
            Path(self.marker).write_text(str(os.getpid()))
            time.sleep(600)
        return super().__call__(table)


class NoSetup(Length):
    """Cannot be set up."""

    def setup(self, models: Mapping[str, Path]) -> None:
        raise ValueError("the model is missing")


class DiesInSetup(Length):
    """Its process ends during set-up."""

    def setup(self, models: Mapping[str, Path]) -> None:
        os._exit(3)


class Words(Annotator):
    """``tokens``: words of the text. Stands in for a tokenizer."""

    version: ClassVar[str] = "1"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    adds: ClassVar[pa.Schema] = pa.schema([("tokens", pa.int32())])

    def __call__(self, table: pa.Table) -> pa.Table:
        counts = [len(text.split()) for text in table.column("text").to_pylist()]
        return pa.table([pa.array(counts, pa.int32())], schema=self.adds)


class Judged(Annotator):
    """``lang`` and ``harm_score`` that a text says of itself: ``harm=5`` is a score, ``lang=de`` a language."""

    version: ClassVar[str] = "1"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    adds: ClassVar[pa.Schema] = pa.schema([("lang", pa.string()), ("harm_score", pa.int8())])

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = [dict(re.findall(r"\b(harm|lang)=(\w+)", text)) for text in table.column("text").to_pylist()]
        langs = pa.array([row.get("lang", "en") for row in rows], pa.string())
        return pa.table([langs, pa.array([int(row.get("harm", 0)) for row in rows], pa.int8())], schema=self.adds)
