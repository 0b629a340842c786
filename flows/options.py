"""Command-line flags made from a pydantic model: every parameter is a flag, with its help, default and limits."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from flows.form import panel
from tasks.logs import masked

MOST_COMPLAINTS = 5
M = TypeVar("M", bound=BaseModel)


class BadParameters(ValueError):
    """A parameter is unknown, missing or out of its limits: one line that names it."""


def flags_of(model: type[BaseModel], run: Callable[..., None], also: list[inspect.Parameter]) -> Callable[..., None]:
    """A function for typer that takes every field of ``model`` as a flag, ``--config FILE``, and what ``also`` lists.

    Flags win over the file, the file over the defaults. ``run(parameters, **also)`` gets the validated model.
    """
    fields = model.model_fields

    def command(**given: Any) -> None:
        config: Path | None = given.pop("config")
        others = {one.name: given.pop(one.name) for one in also}
        flags = {name: _value(fields[name], value) for name, value in given.items() if value not in (None, [])}
        run(validated(model, {**(read_config(config) if config else {}), **flags}), **others)

    parameters = [_flag(name, field) for name, field in fields.items()]
    parameters.append(
        inspect.Parameter(
            "config",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[Path | None, typer.Option("--config", help="YAML file with any of these parameters.")],
        )
    )
    command.__signature__ = inspect.Signature([*parameters, *also])  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in [*parameters, *also]}
    return command


def validated(model: type[M], values: dict[str, Any]) -> M:
    """The model, or BadParameters with all complaints in one line."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        for one in error.errors():
            flag = "--" + ".".join(str(part) for part in one["loc"]).replace("_", "-")
            if not one["loc"]:  # a check over several fields, whose line begins with the name of one
                lines.append(_as_flag(one["msg"].removeprefix("Value error, ")))
            elif one["type"] == "missing":
                lines.append(f"{flag} is missing")
            elif one["type"] == "value_error":  # our own check, which says all; the value may hold a password
                lines.append(f"{flag}: {one['msg'].removeprefix('Value error, ')}")
            elif one["type"] == "extra_forbidden":
                lines.append(f"{flag} is no parameter; see --help")
            else:
                lines.append(f"{flag}: {one['msg'].lower()} (given {masked(repr(one['input']))})")
        more = [f"and {len(lines) - MOST_COMPLAINTS} more"] if len(lines) > MOST_COMPLAINTS else []
        raise BadParameters("; ".join(lines[:MOST_COMPLAINTS] + more)) from error


def _as_flag(line: str) -> str:
    name, colon, rest = line.partition(": ")
    return f"--{name.replace('_', '-')}{colon}{rest}"


def read_config(file: Path) -> dict[str, Any]:
    try:
        held = yaml.safe_load(file.read_text())
    except OSError as error:
        raise BadParameters(f"{file}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadParameters(f"{file}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(held, dict):
        raise BadParameters(f"{file}: holds no parameters; write lines like 'input: s3://bucket/web/*.parquet'")
    return held


def _flag(name: str, field: FieldInfo) -> inspect.Parameter:
    """A flag that says nothing where it is not given, so that the file and the model's own default can speak."""
    annotation = str(field.annotation)
    flag = "--" + name.replace("_", "-")
    default = field.get_default(call_default_factory=True)
    shown = "required" if field.is_required() else "" if default in (None, {}, ()) else _shown(default)
    names: list[str] = [flag]
    kind: Any = str
    if field.annotation is bool:
        names, kind = [f"{flag}/--no-{name.replace('_', '-')}"], bool
    elif annotation.startswith(("dict", "tuple", "list")):
        kind = list[str]
    option = typer.Option(
        *names,
        help=field.description,
        show_default=shown or False,
        metavar=None if kind is bool else _metavar(field.annotation),
        rich_help_panel=panel(name),
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _value(field: FieldInfo, value: Any) -> Any:
    annotation = str(field.annotation)
    if annotation.startswith("dict"):
        pairs = [part for one in value for part in one.split(",")]
        if any("=" not in part for part in pairs):
            raise BadParameters(f"{value[0]!r}: write NAME=VALUE, such as text=content")
        return dict(part.split("=", 1) for part in pairs)
    if annotation.startswith(("tuple", "list")):
        return tuple(part for one in value for part in one.split(","))
    return None if value == "none" else value


def _metavar(annotation: Any) -> str:
    """What stands behind a flag in --help."""
    kind = next((one for one in get_args(annotation) if one is not NoneType), annotation)
    if get_origin(annotation) not in (Union, UnionType):
        kind = annotation
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if get_origin(kind) in (dict, tuple, list):
        return "NAME=VALUE" if get_origin(kind) is dict else "NAME,..."
    return {float: "NUMBER", int: "INTEGER", datetime: "TIME", date: "DATE"}.get(kind, "TEXT")


def _shown(default: Any) -> str:
    return ", ".join(default) if isinstance(default, tuple) else str(default)
