"""The operator contract, and the golden outputs: an operator's output changes only with its version."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.base import Annotator, Operator, execution, fingerprint, model_reference, row_seed, uniform, uniforms
from operators.language.engine import Completion, FinishReason
from operators.language.identify import LanguageId
from operators.language.tokens import TokenCount
from operators.rephrase.wrap import WrapRephrase
from operators.route import Route
from operators.safety.harm_score import HarmScore
from operators.safety.tags import HarmTags

GOLDEN = Path(__file__).with_name("golden.json")

TEXTS = [
    (
        "The ferry leaves the north pier at nine. It carries forty cars and the post for three islands, and on windy "
        "days it does not leave at all. In 1911 the first steamer took two hours; the present one takes 35 minutes."
    ),
    "Die Fähre verlässt den Hafen um neun Uhr. An windigen Tagen bleibt sie liegen.",
    "Le bateau part du quai nord à neuf heures et transporte le courrier de trois îles.",
    "Build the bomb in the garage and kill them all; here is how you hide the weapon from the police afterwards.",
    "船は九時に出る。三つの島へ郵便を運ぶ。風の強い日には出ない。",
    "   \n ",
]


class Toy(Annotator):
    version: ClassVar[str] = "1"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    adds: ClassVar[pa.Schema] = pa.schema([("n", pa.int64())])

    most: int = 3
    model: str = model_reference("package:one")
    other: str | None = model_reference(None)
    cpus: float = execution(1.0)


class Inexact(Toy):
    exact: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-6


def test_execution_and_models_stay_out_of_identity() -> None:
    same = Toy().identity()
    assert same == Toy(cpus=4, batch_size=7, model="/elsewhere").identity()
    assert same != Toy(most=4).identity()
    assert same["config"] == {"most": 3}
    assert Toy().models() == {"model": "package:one"}


def test_the_batch_size_of_an_inexact_operator_is_identity() -> None:
    assert Inexact().identity() != Inexact(batch_size=7).identity()


def test_a_config_is_frozen_and_closed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Toy().most = 4  # type: ignore[misc]
    with pytest.raises(ValueError, match="Extra inputs"):
        Toy(mots=3)  # type: ignore[call-arg]


@given(st.integers(0, 2**40), st.lists(st.text(), max_size=3))
def test_draws_are_in_range_and_repeat(seed: int, names: list[str]) -> None:
    assert 0 <= uniform(seed, *names) < 1
    assert uniform(seed, *names) == uniform(seed, *names)
    assert 0 <= row_seed(seed, *names) < 2**63


@given(st.integers(), st.lists(st.text(), max_size=3), st.lists(st.text(), max_size=5))
def test_many_draws_are_the_single_ones(seed: int, names: list[str], last: list[str]) -> None:
    assert uniforms(seed, *names, last=last).tolist() == [uniform(seed, *names, one) for one in last]


def test_draws_tell_names_apart_and_are_uniform() -> None:
    assert uniform(0, "a", "bc") != uniform(0, "ab", "c")
    assert uniform(0, "a") != uniform(1, "a")
    drawn = [uniform(0, number) for number in range(4000)]
    assert abs(sum(drawn) / len(drawn) - 0.5) < 0.02  # 4 standard errors


def test_a_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 2, "b": 1})


def annotated(operator: Annotator, models: Mapping[str, Path]) -> pa.Table:
    operator.setup(models)
    return operator(pa.table({"text": TEXTS}))


def wrap_output(folder: Path) -> Any:
    operator = WrapRephrase(piece_tokens=24, min_piece_tokens=8)
    operator.setup({"tokenizer": folder})
    made: list[Any] = []
    for number, text in enumerate(TEXTS):
        row = {"id": f"row-{number}", "text": text}
        requests = operator.requests(row)
        said = ["Sure, here is a simpler version:\n\nThe boat goes to three islands at nine each day."] * len(requests)
        answers = [Completion(one, FinishReason.STOP, 30, 20) for one in said]
        new = operator.parse(row, list(zip(requests, answers, strict=True)))
        made.append([[one.messages, one.max_tokens, one.note] for one in requests])
        made.append([{**one, "id": operator.row_id(row["id"], one)} for one in new])
    return made


def rounded(table: pa.Table) -> list[dict[str, Any]]:
    """Floats to two decimals: the last bits of a linear fit are the processor's."""
    return [{k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()} for row in table.to_pylist()]


@pytest.fixture
def output(request: pytest.FixtureRequest) -> Any:
    need = request.getfixturevalue
    operator = request.param
    if operator is LanguageId:
        return rounded(annotated(LanguageId(), {"model": need("lid")}))
    if operator is TokenCount:
        return rounded(annotated(TokenCount(), {"tokenizer": need("smollm2")}))
    if operator is HarmScore:
        return rounded(annotated(HarmScore(), need("harm_models")))
    if operator is WrapRephrase:
        return wrap_output(need("smollm2"))
    if operator is Route:
        table = pa.table({"lang": ["en", "de", None], "harm_score": pa.array([0, 5, 2], pa.int8())})
        return Route(routes=(("keep", "lang = 'en'"), ("tag", "harm_score > 3")))(table).to_pylist()
    tags = HarmTags(p=0.3, seed=7)
    return [tags.insert(text, f"row-{number}") for number, text in enumerate(TEXTS)]


@pytest.mark.parametrize(
    ("operator", "output"),
    [(one, one) for one in (LanguageId, TokenCount, HarmScore, WrapRephrase, Route, HarmTags)],
    indirect=["output"],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_an_output_changes_only_with_its_version(operator: type[Operator] | type[HarmTags], output: Any) -> None:
    """After a wanted change: raise ``version``, then run this test with WINNOW_GOLDEN=write."""
    text = json.dumps(output, ensure_ascii=False, sort_keys=True)
    found = hashlib.sha256(text.encode()).hexdigest()
    known = json.loads(GOLDEN.read_text("utf-8")) if GOLDEN.exists() else {}
    key = f"{operator.__name__}@{operator.version}"
    if key not in known and os.environ.get("WINNOW_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps({**known, key: found}, indent=2, sort_keys=True) + "\n", "utf-8")
        known[key] = found
    assert key in known, f"{key} is new: run with WINNOW_GOLDEN=write and commit golden.json"
    assert known[key] == found, f"the output of {key} changed: raise {operator.__name__}.version"
