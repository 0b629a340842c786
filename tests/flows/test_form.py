"""The flow's parameters as the form in Prefect's UI: what a person sees at a field, and what is refused before a run.

The real form in a real browser is in test_browser.py; here its schema goes through Prefect's own check.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate
from pydantic import ValidationError

from flows.form import PANELS, panel
from flows.options import BadParameters, validated
from flows.parameters import CurateText

GIVEN: dict[str, Any] = {"input": "/in", "output": "/out"}
FROM_DIRECT = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "pattern")
"""What the UI of Prefect 3.7 leaves out where it stands directly at a field."""


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    from flows.curate_text import curate_text

    return parameter_schema(curate_text).model_dump(mode="json")


def complaints(schema: dict[str, Any], **given: Any) -> list[str]:
    """What the form says of these values, each with the path of its field."""
    errors = validate({"parameters": {**GIVEN, **given}}, schema)
    return [f"{'.'.join(map(str, list(error.relative_path)[1:]))}: {error.message}" for error in errors]


def fields(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict(schema["definitions"]["CurateText"]["properties"])


def test_every_field_has_a_title_in_its_group_and_help(schema: dict[str, Any]) -> None:
    assert list(fields(schema)) == list(CurateText.model_fields)
    for name, field in fields(schema).items():
        assert field["title"].startswith(f"{panel(name)} · "), name
        assert len(field["description"]) > 10, name
    assert fields(schema)["engine_url"]["title"] == "Rephrasing · Engine URL"


def test_groups_hold_every_field_once_and_stand_together() -> None:
    held = [name for names in PANELS.values() for name in names]
    assert sorted(held) == sorted(CurateText.model_fields)
    assert [title for title, _ in groupby(CurateText.model_fields, key=panel)] == list(PANELS)


def test_the_form_starts_with_the_defaults_and_they_pass(schema: dict[str, Any]) -> None:
    assert complaints(schema) == []
    shown = {name: field["default"] for name, field in fields(schema).items() if "default" in field}
    assert complaints(schema, **shown) == []
    assert CurateText(**GIVEN, **shown) == CurateText(**GIVEN)


def test_an_optional_field_is_its_type_and_not_a_choice_of_types(schema: dict[str, Any]) -> None:
    tabs = [name for name, field in fields(schema).items() if "anyOf" in field]
    assert tabs == ["synthetic_share"]  # where None says "take everything", and leaving it out does not
    assert complaints(schema, synthetic_share=None) == []
    assert "default" not in fields(schema)["limit"]
    assert fields(schema)["first_date"]["allOf"] == [{"type": "string", "format": "date"}]


def test_limits_stand_where_the_form_checks_them(schema: dict[str, Any]) -> None:
    for name, field in fields(schema).items():
        assert not set(FROM_DIRECT) & set(field), name
    limited = {name for name, field in fields(schema).items() if "allOf" in field or "anyOf" in field}
    plain = {name for name, field in CurateText.model_fields.items() if field.annotation in (int, float)}
    assert plain <= limited, "a number without limits"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"seed": -1}, "seed: -1 is less than the minimum of 0"),
        ({"tag_probability": 1.5}, "tag_probability: 1.5 is greater than the maximum of 1"),
        ({"synthetic_share": 1}, "synthetic_share: 1 is not valid under any of the given schemas"),
        ({"input": "s3://me:secret@lake/x"}, "input: 's3://me:secret@lake/x' does not match"),
        (
            {"input": "https://h/a.jsonl?X-Amz-Signature=00"},
            "input: 'https://h/a.jsonl?X-Amz-Signature=00' does not match",
        ),
        ({"credentials": "sk-0123"}, "credentials: 'sk-0123' does not match"),
        ({"credentials": "wJalrXUt/K7MDENG"}, "credentials: 'wJalrXUt/K7MDENG' does not match"),
        ({"limit": 0}, "limit: 0 is less than the minimum of 1"),
        ({"limit": "many"}, "limit: 'many' is not of type 'integer'"),
        ({"styles": ["rude"]}, "styles.0: 'rude' is not one of ['easy', 'medium', 'hard', 'qa']"),
        ({"styles": []}, "styles: [] should be non-empty"),
        ({"engine": "magic"}, "engine: 'magic' is not one of ['auto', 'vllm', 'transformers', 'openai']"),
        ({"engine": "openai"}, ": 'engine_url' is a required property"),
        ({"engine": "openai", "engine_url": "host:8000"}, "engine_url: 'host:8000' does not match"),
        ({"first_date": "14 March"}, "first_date: '14 March' is not a 'date'"),
        ({"input": ""}, "input: '' should be non-empty"),
        ({"input": "  "}, "input: '  ' does not match"),
        ({"shards": [""]}, "shards.0: '' should be non-empty"),
        ({"columns": {"text": 1}}, "columns.text: 1 is not of type 'string'"),
        ({"nonsense": 1}, ": Additional properties are not allowed ('nonsense' was unexpected)"),
    ],
)
def test_a_wrong_value_is_refused_in_the_form(schema: dict[str, Any], given: dict[str, Any], says: str) -> None:
    found = complaints(schema, **given)
    assert any(one.startswith(says) for one in found), found


def test_what_may_stay_empty_may_be_null_in_a_file() -> None:
    names = ("limit", "first_date", "last_date", "engine_url", "engine_model", "until", "max_tokens", "synthetic_share")
    held = CurateText(**GIVEN, **dict.fromkeys(names))
    assert all(getattr(held, name) is None for name in names)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"first_date": "2026-03-15", "last_date": "2026-03-14"},
            "--first-date: 2026-03-15 is after last_date, 2026-03-14; exchange them",
        ),
        ({"output": "/in/"}, "--output: /in/ is the input too; choose another folder"),
        (
            {"engine": "openai"},
            "--engine-url: missing; engine openai needs the URL of its server: http://host:8000/v1",
        ),
        (
            {"engine_url": "http://h/v1"},
            "--engine-url: is for engine openai alone, and engine is auto; leave one out",
        ),
        (
            {"engine": "vllm", "tokens_per_minute": 5},
            "--tokens-per-minute: is for engine openai alone, and engine is vllm; leave one out",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line_that_names_the_field(given: dict[str, Any], line: str) -> None:
    with pytest.raises(BadParameters) as told:
        validated(CurateText, {**GIVEN, **given})
    assert str(told.value) == line
    with pytest.raises(ValidationError, match=line.removeprefix("--").split(":", 1)[1]):
        CurateText(**{**GIVEN, **given})


@pytest.mark.parametrize(
    "url",
    [
        "https://h/a.parquet?X-Amz-Credential=AKIA&X-Amz-Signature=cAnary",
        "https://h/a.parquet?sv=2024&sig=cAnary",
        "https://h/a.parquet?x-goog-signature=cAnary",
        "https://h/a.parquet?token=cAnary",
        "https://h/a.parquet?a=1&api_key=cAnary",
    ],
)
def test_a_signed_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(BadParameters, match="--input: is a signed URL, and every record") as told:
        validated(CurateText, {"input": url, "output": "/out"})
    assert "cAnary" not in str(told.value)


@pytest.mark.parametrize("url", ["s3://lake/part-?/key=1/a.parquet", "/lake/what?.jsonl", "https://h/a.jsonl?page=1"])
def test_globs_and_partitions_are_no_signatures(url: str) -> None:
    assert CurateText(input=url, output="/out").input == url


def test_without_rephrasing_no_server_is_needed() -> None:
    assert CurateText(**GIVEN, engine="openai", rephrase=False).engine_url is None


def test_a_glob_that_is_none_is_refused_with_its_reason() -> None:
    with pytest.raises(BadParameters, match=r"--shards\.1: .*'\[z-a\]': no glob"):
        validated(CurateText, {**GIVEN, "shards": ["a*", "[z-a]"]})
