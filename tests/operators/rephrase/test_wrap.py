from __future__ import annotations

import pickle
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from operators.language.engine import Completion, FinishReason, Request
from operators.rephrase.gates import Gates
from operators.rephrase.styles import Style, prompt
from operators.rephrase.wrap import LEAD_IN_TOKENS, WrapRephrase

WORDS = "ferry pier island post wind captain harbour noon rope light storm town winter fish sail tide rock bell".split()
OTHERS = (
    "boat quay islet mail breeze skipper port midday cord lamp gale village frost catch canvas ebb stone chime".split()
)


def prose(words: list[str], sentences: int, seed: int) -> str:
    """Sentences of ten words each, no two alike."""
    drawn = random.Random(seed)
    return " ".join(" ".join(drawn.choices(words, k=10)).capitalize() + "." for _ in range(sentences))


TEXT = prose(WORDS, 120, 0)
ROW = {"id": "doc-1", "text": TEXT}


def ready(folder: Path, **changes: Any) -> WrapRephrase:
    operator = WrapRephrase(**changes)
    operator.setup({"tokenizer": folder})
    return operator


def stop(text: str, finish: FinishReason = FinishReason.STOP) -> Completion:
    return Completion(text, finish, 40, 30)


def fair(request: Request) -> str:
    note = dict(request.note)
    return prose(OTHERS, note["tokens"] // 14, request.part)


def test_requests_carry_the_piece_its_style_and_a_bound(smollm2: Path) -> None:
    operator = ready(smollm2)
    requests = operator.requests(ROW)
    assert [one.part for one in requests] == list(range(len(requests)))
    assert len(requests) > 3
    for one in requests:
        note = dict(one.note)
        piece = TEXT[note["start"] : note["end"]]
        assert one.messages == (("user", prompt(Style(note["style"]), piece)),)
        assert note["tokens"] <= operator.piece_tokens
        ratio = 3.0 if note["style"] == "qa" else 2.0
        assert one.max_tokens == min(512, int(ratio * note["tokens"]) + LEAD_IN_TOKENS)
        assert one.seed == 0
    assert operator.requests(ROW) == requests


def test_a_request_never_asks_for_more_than_the_run_allows(smollm2: Path) -> None:
    assert {one.max_tokens for one in ready(smollm2, max_new_tokens=64).requests(ROW)} == {64}


def test_styles_are_drawn_uniformly_by_row_and_part(smollm2: Path) -> None:
    operator = ready(smollm2, piece_tokens=24)
    drawn: Counter[str] = Counter()
    for number in range(40):
        for one in operator.requests({"id": f"doc-{number}", "text": TEXT}):
            drawn[dict(one.note)["style"]] += 1
    assert set(drawn) == {style.value for style in Style}
    total = drawn.total()
    assert all(abs(count / total - 0.25) < 4 * (0.25 * 0.75 / total) ** 0.5 for count in drawn.values())
    only = ready(smollm2, styles=(Style.HARD,)).requests(ROW)
    assert {dict(one.note)["style"] for one in only} == {"hard"}


def test_a_system_prompt_comes_first_and_sampled_runs_have_seeds(smollm2: Path) -> None:
    requests = ready(smollm2, system="Be brief.", sampled=True).requests(ROW)
    assert {one.messages[0] for one in requests} == {("system", "Be brief.")}
    assert len({one.seed for one in requests}) == len(requests)


def test_short_pieces_and_empty_texts_are_left_alone(smollm2: Path) -> None:
    operator = ready(smollm2)
    assert operator.requests({"id": "a", "text": "A heading"}) == []
    assert operator.requests({"id": "a", "text": " \n"}) == []
    assert len(ready(smollm2, min_piece_tokens=1).requests({"id": "a", "text": "A heading"})) == 1


def test_new_rows_have_the_declared_columns_and_ids(smollm2: Path) -> None:
    operator = ready(smollm2)
    requests = operator.requests(ROW)
    pairs = [(one, stop(f"Sure! Here is a simpler version:\n\n{fair(one)}")) for one in requests]
    rows = operator.parse(ROW, pairs[::-1])
    table = pa.Table.from_pylist(rows, schema=WrapRephrase.adds)
    assert all(set(row) == set(WrapRephrase.adds.names) for row in rows)
    assert table.column("part").to_pylist() == list(range(len(requests)))
    assert set(table.column("status").to_pylist()) == {"ok"}
    assert [row["text"] for row in rows] == [fair(one) for one in requests]
    assert table.column("raw").null_count == table.column("reason").null_count == len(rows)
    ids = [operator.row_id("doc-1", row) for row in rows]
    assert ids[0] == f"doc-1/wrap-{rows[0]['style']}-0"
    assert len(set(ids)) == len(ids)


def test_a_refused_row_keeps_what_the_model_wrote(smollm2: Path) -> None:
    operator = ready(smollm2)
    request = operator.requests(ROW)[0]
    note = dict(request.note)
    copied = f"Here is a paraphrase:\n{TEXT[note['start'] : note['end']]}"
    cases = {
        copied: (FinishReason.STOP, "copy"),
        fair(request): (FinishReason.LENGTH, "truncated"),
        "Too short.": (FinishReason.STOP, "too_short"),
        "": (FinishReason.STOP, "empty"),
    }
    for said, (finish, reason) in cases.items():
        [row] = operator.parse(ROW, [(request, stop(said, finish))])
        assert (row["status"], row["reason"], row["text"], row["raw"]) == ("rejected", reason, None, said)
        assert row["finish_reason"] == finish.value


def test_only_some_of_the_parts_may_come_back(smollm2: Path) -> None:
    operator = ready(smollm2)
    requests = operator.requests(ROW)
    [row] = operator.parse(ROW, [(requests[2], stop(fair(requests[2])))])
    assert row["part"] == 2
    assert operator.parse(ROW, []) == []


def test_the_words_of_the_prompts_are_identity() -> None:
    one, two = WrapRephrase(styles=(Style.EASY,)).identity(), WrapRephrase().identity()
    assert list(one["prompts"]) == ["easy.v1.md"]
    assert len(two["prompts"]) == 4
    assert "{piece}" in two["prompts"]["qa.v1.md"]
    assert WrapRephrase(gates=Gates(most_copied=0.5)).identity() != two
    assert WrapRephrase(tokenizer="/elsewhere").identity() == two


def test_it_travels_to_a_worker_before_it_is_set_up() -> None:
    assert pickle.loads(pickle.dumps(WrapRephrase(seed=3))) == WrapRephrase(seed=3)


def test_setup_comes_first() -> None:
    with pytest.raises(RuntimeError, match="setup"):
        WrapRephrase().requests(ROW)
