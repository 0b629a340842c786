"""The form of a parameter model in Prefect's UI: titles by group, limits that the form itself checks, no tabs for None.

What the UI of Prefect 3.7 does with a schema decides the shape here. It shows no groups, so a title begins with one. An
optional value (``anyOf`` with null) becomes two tabs named "int" and "None", so it is given as its type without a
default: left empty, it is left out. And of what stands directly at a field it hands only a part to the check, without
limits and patterns, but what stands under ``allOf`` as it is: so limits move there, and a wrong value is told at its
field, before anything starts.
Only the JSON schema is shaped: what YAML, flags and Python accept is the model's.
"""

from __future__ import annotations

from typing import Any

from pydantic.fields import ComputedFieldInfo, FieldInfo

PANELS = {
    "Data": ("input", "output", "credentials", "columns", "seed", "limit", "shards", "first_date", "last_date"),
    "Decisions": ("keep", "tag", "tag_probability", "max_quarantine"),
    "Rephrasing": (
        "rephrase rephrase_share styles piece_tokens max_new_tokens temperature model engine dtype engine_gpus "
        "engine_threads engine_url engine_model engine_concurrency requests_per_minute tokens_per_minute"
    ).split(),
    "Corpus": ("build", "synthetic_share", "shard_tokens"),
    "Execution": "executor ray_address workers retries stall_seconds until max_tokens single_writer".split(),
}
"""Groups of parameters, in --help and in the form."""

_SPELLED = {"url": "URL", "gpus": "GPUs"}
_LIMITS = (
    "type format pattern enum items minimum maximum exclusiveMinimum exclusiveMaximum minLength maxLength minItems "
    "maxItems additionalProperties"
).split()


def panel(name: str) -> str:
    """The group of a parameter."""
    return next((title for title, names in PANELS.items() if name in names), "Options")


def form_title(name: str, field: FieldInfo | ComputedFieldInfo) -> str:
    """For pydantic's ``field_title_generator``: group and name, such as "Rephrasing · Engine URL"."""
    words = [_SPELLED.get(word, word) for word in name.split("_")]
    return f"{panel(name)} · {words[0][:1].upper()}{words[0][1:]}{''.join(f' {word}' for word in words[1:])}"


def shape_form(schema: dict[str, Any]) -> None:
    """For pydantic's ``json_schema_extra``: changes the schema of an object in place."""
    for name, field in schema.get("properties", {}).items():
        one = _without_null(field)
        limits = {key: one.pop(key) for key in _LIMITS if key in one}
        if set(limits) - {"type"}:
            one["allOf"] = [limits]
        else:
            one |= limits
        schema["properties"][name] = one


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    """An optional value as its type. One with another default keeps its tabs, as None says something else there."""
    kinds = [kind for kind in field.get("anyOf", ()) if kind.get("type") != "null"]
    if len(kinds) != 1 or len(field["anyOf"]) != 2 or field.get("default") is not None:
        return dict(field)
    return {key: value for key, value in field.items() if key not in ("anyOf", "default")} | kinds[0]
