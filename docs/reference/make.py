"""Writes this folder's pages from the code: ``python docs/reference/make.py [FOLDER]``. A test holds them true."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pyarrow as pa
import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import operators
from flows import cli
from flows.form import PANELS
from flows.parameters import CurateText
from operators.base import Annotator, Operator, Rewriter
from tasks.aligned import REASON, STATUS
from tasks.build import CORPUS
from tasks.quarantine import QUARANTINE
from tasks.records import Record
from tasks.summary import Accounts, RunSummary, StageSummary

CORPUS_COLUMNS = {
    "id": "the source's, or made of its place and content; of a rewritten row made of its parent's and the piece",
    "text": "what a trainer reads, with harm tags where `tagged`",
    "origin": "`real` or `synthetic`",
    "parent_id": "of a rewritten row the document that it was made from",
    "url": "the source's",
    "date": "the source's",
    "lang": "ISO 639-1",
    "harm_score": "0 (safe) to 5",
    "route": "name of the condition that the document met",
    "style": "of a rewritten row, WRAP's style",
    "tagged": "whether harm tags were put into the text",
    "tokens": "of the text without tags, by the model's tokenizer",
    "source_shard": "name of the input file, relative to the input",
    "source_ordinal": "row in it, from 0",
}
QUARANTINE_COLUMNS = {
    "shard": "name of the input file",
    "ordinal": "row in it, from 0",
    "id": "as far as it was known",
    "reason": "why the row could not be done",
    "row": "its bytes where it could not be parsed, else the row as JSON",
}

OPTION = ("option", "default", "meaning")
MADE = "Made from the code by `make reference`: change it there.\n"


def commands() -> str:
    """Every command with its arguments and options, as ``--help`` has them."""
    lines = ["# The command line", "", MADE]
    group: Any = typer.main.get_command(cli.app)
    before = [
        (_code(*one.opts), _default(one), _one_line(one.help or "")) for one in group.params if one.name != "help"
    ]
    if before:
        lines += ["Options of every command, written before its name:", "", *_table(OPTION, before), ""]
    for name, command in group.commands.items():
        shown = [one for one in command.params if one.name != "help"]
        arguments = [one for one in shown if one.param_type_name == "argument"]
        usage = " ".join(["winnow", name, *(_metavar(one) for one in arguments)])
        lines += [f"## winnow {name}", "", f"`{usage}{' [OPTIONS]' if len(shown) > len(arguments) else ''}`", ""]
        lines += [_one_line(command.help or ""), ""]
        if name in ("curate-text", "submit"):
            lines += ["Every parameter of [the flow](parameters.md) is an option; and:", ""]
            shown = [one for one in shown if one.name not in CurateText.model_fields]
        rows = [(_code(*_names(one)), _default(one), _one_line(one.help or "")) for one in shown]
        if rows:
            lines += [*_table(OPTION, rows), ""]
    lines += [
        "Exit codes: 0 done and all accounts close (`diff`: the same), 1 ended with something open (`diff`: different),"
    ]
    lines += ["2 refused before it started; the line on standard error says why."]
    return _page(lines)


def parameters() -> str:
    """The flow's parameters: one pydantic model is the YAML file, the flags and the form."""
    lines = ["# Parameters of curate_text", "", MADE]
    lines += [
        "The same names stand in a YAML file (`--config`), as flags (`engine_url` is `--engine-url`) and in the form",
        "of Prefect's UI.",
        "",
    ]
    left = dict(CurateText.model_fields)
    for panel, names in PANELS.items():
        rows = [_field(name, left.pop(name)) for name in names]
        lines += [f"## {panel}", "", *_table(("parameter", "type", "default", "meaning"), rows), ""]
    if left:
        raise SystemExit(f"no panel in flows/form.py names {', '.join(left)}")
    return _page(lines)


def operator_pages() -> str:
    """Every operator: what it reads, what it adds, its configuration."""
    lines = ["# Operators", "", MADE]
    lines += [
        "An annotation adds `status` and `reason` to its columns: a row that could not be done keeps its place, with",
        "nulls.",
        "",
    ]
    for operator in sorted(_operators(), key=lambda one: (not issubclass(one, Annotator), one.__name__)):
        kind = "annotator" if issubclass(operator, Annotator) else "rewriter"
        module = operator.__module__.replace(".", "/") + ".py"
        lines += [
            f"## {operator.__name__}",
            "",
            f"{kind.capitalize()}, version {operator.version}, [{module}](../../{module})",
            "",
        ]
        lines += [_prose(inspect.getdoc(operator) or ""), ""]
        if (reads := getattr(operator, "reads", ())) and isinstance(reads, tuple):
            lines += [f"Reads: {_code(*reads)}.", ""]
        if isinstance(adds := getattr(operator, "adds", None), pa.Schema):
            lines += ["Adds: " + ", ".join(f"`{one.name}` ({one.type})" for one in adds) + ".", ""]
        rows = [_field(name, field) for name, field in operator.model_fields.items()]
        if rows:
            lines += [*_table(("configuration", "type", "default", "meaning"), rows), ""]
    return _page(lines)


def files() -> str:
    """What lies at an output root: the columns of the data, the fields of the JSON beside it."""
    lines = ["# Files", "", MADE, "Where they lie: [architecture.md](../architecture.md#layout-of-an-output-root).", ""]
    lines += [
        "## Corpus",
        "",
        *_schema(CORPUS, CORPUS_COLUMNS),
        "",
        "Columns that `columns` names beyond our own follow them.",
        "",
    ]
    lines += ["## Quarantine", "", *_schema(QUARANTINE, QUARANTINE_COLUMNS), ""]
    lines += [
        "## Annotations",
        "",
        f"`id`, the operator's columns ([operators.md](operators.md)), `{STATUS}`, `{REASON}`; one row a row",
        "of the shard it annotates, in its order.",
        "",
    ]
    for title, model in (
        ("Record of a shard", Record),
        ("Accounts", Accounts),
        ("Summary of a run", RunSummary),
        ("Summary of a stage", StageSummary),
    ):
        rows = [_field(name, field) for name, field in model.model_fields.items()]
        lines += [
            f"## {title}",
            "",
            _prose(inspect.getdoc(model) or ""),
            "",
            *_table(("field", "type", "default", "meaning"), rows),
            "",
        ]
    return _page(lines)


def _operators() -> Iterator[type[Operator]]:
    seen: set[type[Operator]] = set()
    for module in pkgutil.walk_packages(operators.__path__, "operators."):
        if module.name.endswith("_engine"):
            continue  # loads torch or vLLM, and holds an engine
        for one in vars(importlib.import_module(module.name)).values():
            base = inspect.isclass(one) and issubclass(one, Operator) and one not in (Operator, Annotator, Rewriter)
            if base and one.__module__ == module.name and one not in seen:
                seen.add(one)
                yield one


def _field(name: str, field: FieldInfo) -> tuple[str, str, str, str]:
    default = "required" if field.is_required() else _value(field.get_default(call_default_factory=True))
    limits = [_limit(one) for one in field.metadata]
    kind = _type(field.annotation) + "".join(f", {limit}" for limit in limits if limit)
    return _code(name), kind, default, _one_line(field.description or "")


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0])
    if origin in (Union, UnionType):
        return " or ".join(_type(one) for one in inner)
    if origin is Literal:
        return " or ".join(str(one) for one in inner)
    if origin is not None:
        return f"{origin.__name__} of {', '.join(_type(one) for one in inner if one is not ...)}"
    return "none" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def _limit(constraint: Any) -> str:
    for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
        if (value := getattr(constraint, name, None)) is not None:
            return f"{sign} {value}"
    return ""


def _value(default: Any) -> str:
    if isinstance(default, BaseModel) or default in (None, "", (), [], {}):
        return "" if not isinstance(default, BaseModel) else type(default).__name__
    if isinstance(default, tuple):
        return _code(", ".join(str(getattr(one, "value", one)) for one in default))
    return _code(str(getattr(default, "value", default)))


def _names(parameter: Any) -> Sequence[str]:
    return parameter.opts if parameter.param_type_name == "option" else [_metavar(parameter)]


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _default(parameter: Any) -> str:
    default = parameter.default() if callable(parameter.default) else parameter.default
    return "" if default in (None, False) else _code(str(default)) if not parameter.required else "required"


def _schema(schema: pa.Schema, meanings: dict[str, str]) -> list[str]:
    return _table(
        ("column", "type", "meaning"), [(_code(one.name), str(one.type), meanings[one.name]) for one in schema]
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]


def _code(*names: str) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _prose(docstring: str) -> str:
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", docstring.replace("``", "`"))


def _page(lines: Sequence[str]) -> str:
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


PAGES = {"commands.md": commands, "parameters.md": parameters, "operators.md": operator_pages, "files.md": files}


def main(folder: Path) -> None:
    for name, make in PAGES.items():
        (folder / name).write_text(make(), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
