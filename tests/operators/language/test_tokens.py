from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from operators.language.tokens import TokenCount, load_tokenizer


def test_counts_are_the_tokenizers_own(smollm2: Path, tokenizer: Any, news: list[str]) -> None:
    texts = [*news[:20], "", " ", "日本語 👩‍👩‍👧", "x" * 5000]
    operator = TokenCount()
    operator.setup({"tokenizer": smollm2})
    table = operator(pa.table({"text": texts}))
    assert table.schema == TokenCount.adds
    assert table.column("tokens").to_pylist() == [
        len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts
    ]


def test_a_long_text_is_not_cut_off(smollm2: Path) -> None:
    operator = TokenCount()
    operator.setup({"tokenizer": smollm2})
    [count] = operator(pa.table({"text": ["word " * 20_000]})).column("tokens").to_pylist()
    assert count >= 20_000


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tokenizer.json there"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is it a tokenizer.json"):
        load_tokenizer(tmp_path)
