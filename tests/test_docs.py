"""What the documents say still stands: links, paths, command lines, configuration, and no trace of one machine."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from flows import cli, options
from flows.parameters import CurateText
from operators.language.tokens import TokenCount
from operators.route import Route
from tasks.build import CORPUS
from tasks.dataset import HIDDEN

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "infra/README.md", ROOT / "deployments/README.md"]
)
GUARANTEE_TABLES = [("Guarantees", "Recovery"), ("Stalls", "Formats"), ("What other systems", "What is not")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
ROOMS = "operators|tasks|flows|tests|docs|infra|deployments|requirements"
IN_REPOSITORY = re.compile(rf"`((?:{ROOMS})/[\w./-]*|[\w-]+\.(?:md|toml)|Makefile)`")
MADE_BY_THE_RECIPE = {"operators/duplicate_lines.py", "tests/operators/test_duplicate_lines.py"}
MACHINE = re.compile(r"(?<![\w/.$}])/(?:home|root|Users|work|opt|mnt|data|tmp)/\w")
HOST = re.compile(r"https?://|\b[\w-]+\.(?:com|org|net|io|dev|ai)\b")
PLACEHOLDER = re.compile(r"https?://(?:head|host|localhost|127\.0\.0\.1|server-[ab])\b[\w:/.-]*")
PUBLIC = re.compile(r"\b(?:example\.org|keepachangelog\.com|semver\.org|fasttext\.cc)\b")


def read(document: Path) -> str:
    return document.read_text("utf-8")


def ids(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def fenced(document: Path, kind: str) -> list[str]:
    return [text for found, text in FENCE.findall(read(document)) if found == kind]


def anchors(document: Path) -> set[str]:
    """Names that a link can jump to: headings in small letters, blanks as hyphens, other marks left out."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", read(document)), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every ``winnow ...`` of a bash block, with its words."""
    for document in DOCUMENTS:
        for block in fenced(document, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.partition("||")[0], comments=True)
                if words and words[0].rpartition("/")[2] == "winnow":
                    yield f"{ids(document)}: {line.strip()[:60]}", words[1:]


COMMANDS = list(commands())


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_links_lead_somewhere(document: Path) -> None:
    for link in LINK.findall(FENCE.sub("", read(document))):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists() and target.is_relative_to(ROOT), f"{ids(document)} links to {link}, which is not there"
        assert not anchor or anchor in anchors(target), f"{ids(document)} links to {link}, a heading that is not there"


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_named_paths_exist(document: Path) -> None:
    named = set(IN_REPOSITORY.findall(FENCE.sub("", read(document)))) - MADE_BY_THE_RECIPE
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_named_tests_exist(document: Path) -> None:
    missing = [
        f"{file}::{name}"
        for file, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", read(document))
        if not (ROOT / file).exists() or f"\ndef {name}(" not in read(ROOT / file)
    ]
    assert missing == []


def test_every_guarantee_names_its_test() -> None:
    """A line without one would be a promise: each row of these tables has a test, or stands beside one that has."""
    text = read(ROOT / "docs" / "guarantees.md")
    promises = [text[text.index(f"## {a}") : text.index(f"## {b}")] for a, b in GUARANTEE_TABLES]
    rows = [
        row for part in promises for row in re.findall(r"^\| (?!\*?-|guarantee|what|who|complaint)(.+)$", part, re.M)
    ]
    assert len(rows) > 30 and [row[:60] for row in rows if "::test_" not in row] == []


def test_every_outcome_of_bad_input_names_its_test() -> None:
    rows = re.findall(r"^\| (?!-|case)(.+)$", read(ROOT / "docs" / "how-to" / "bad-input.md"), re.MULTILINE)
    assert len(rows) > 30 and [row[:60] for row in rows if "::test_" not in row] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_no_machine_and_no_host_is_named(document: Path) -> None:
    assert MACHINE.findall(read(document)) == []
    text = PUBLIC.sub("", PLACEHOLDER.sub("", read(document)))
    assert [match[0] for match in HOST.finditer(text)] == []


def test_the_documents_hold_commands() -> None:
    assert {words[0] for _, words in COMMANDS} >= {"curate-text", "status", "verify", "flows"}


@pytest.mark.parametrize("words", [words for _, words in COMMANDS], ids=[name for name, _ in COMMANDS])
def test_command_lines_are_understood(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed by the command line itself; what would start work is cut off behind the parsing."""
    seen: list[Any] = []
    config = next(yaml.safe_load(text) for text in fenced(ROOT / "README.md", "yaml"))
    monkeypatch.setattr(options, "read_config", lambda file: config)
    monkeypatch.setattr("flows.start.start", lambda parameters, as_json: seen.append(parameters) or 0)
    monkeypatch.setattr("flows.start.demo", lambda folder, as_json: seen.append(folder) or 0)
    monkeypatch.setattr("flows.submit.submit", lambda parameters, *others: seen.append(parameters) or 0)
    monkeypatch.setattr("flows.serve.command.serve", lambda port: seen.append(port) or 0)
    for name in (
        "inspection.show_status",
        "inspection.show_verification",
        "tracing.show_lineage",
        "tracing.show_diff",
        "upkeep.retry",
        "upkeep.collect_garbage",
    ):
        monkeypatch.setattr(f"flows.{name}", lambda url, *others: seen.append(url) or 0)
    result = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert seen or words[0] == "flows"
    for parameters in seen:
        if isinstance(parameters, CurateText):
            Route(routes=(("keep", parameters.keep), ("tag", parameters.tag)))


def test_a_wrong_flag_would_be_seen() -> None:
    assert CliRunner().invoke(cli.app, ["curate-text", "--keeep", "x"]).exit_code == 2


def test_the_configuration_is_valid_and_decides_over_columns_that_exist() -> None:
    [text] = fenced(ROOT / "README.md", "yaml")
    parameters = CurateText.model_validate(yaml.safe_load(text))
    route = Route(routes=(("keep", parameters.keep),))
    assert set(route.reads) <= {"lang", "lang_score", "harm_score", "harm", *TokenCount.adds.names}


def test_flags_and_folders_that_the_text_names_exist() -> None:
    known: Any = typer.main.get_command(cli.app)
    parameters = [one for command in known.commands.values() for one in command.params]
    flags = {flag for one in parameters for flag in (*one.opts, *one.secondary_opts)}
    for name in ("README.md", "docs/architecture.md"):
        text = FENCE.sub("", read(ROOT / name))
        named = set(re.findall(r"`(--[a-z-]+)", text))
        assert named - flags == set(), name
    assert f"{HIDDEN}/" in read(ROOT / "README.md")
    for column in ("id", "text", "origin", "tokens", "tagged", "source_shard", "source_ordinal", "parent_id", "style"):
        assert column in CORPUS.names and f"`{column}`" in read(ROOT / "README.md")


def test_make_targets_that_the_text_names_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", read(ROOT / "Makefile"), re.MULTILINE))
    for document in DOCUMENTS:
        text = read(document)
        named = set(re.findall(r"`make ([a-z-]+)", text)) | set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE))
        assert named <= targets, ids(document)


def test_pictures_are_small_and_well_formed() -> None:
    pictures = ROOT / "docs" / "pictures"
    assert ET.parse(pictures / "flow.svg").getroot().tag.endswith("svg")
    for picture in ("report.png", "form.png"):
        data = (pictures / picture).read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) < 300_000, picture
