"""What infra/ names of ours is there: variables, flags, commands; and what the charts start is in the image."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from typer.main import get_command

from flows.cli import app

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
TEXTS = {
    file: file.read_text() for file in INFRA.rglob("*") if file.suffix in (".yaml", ".md") or "Dockerfile" in file.name
}
OF_COMPOSE = {"WINNOW_DASHBOARDS"}
"""Read by infra/grafana/provisioning, not by winnow."""


def test_every_variable_that_is_set_is_one_that_the_code_reads() -> None:
    code = "".join(file.read_text() for room in ("flows", "tasks", "operators") for file in (ROOT / room).rglob("*.py"))
    named = {name for text in TEXTS.values() for name in re.findall(r"\bWINNOW_[A-Z_]+[A-Z]\b", text)} - OF_COMPOSE
    assert len(named) > 4
    assert [name for name in sorted(named) if f'"{name}"' not in code] == []


def test_every_winnow_command_has_its_flags() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    found = [
        words.split()
        for text in TEXTS.values()
        for words in re.findall(r"(?:^|entrypoint: |`)winnow ([a-z-]+(?: [^`\n]+)?)", text, re.MULTILINE)
    ]
    assert {"curate-text", "submit"} <= {words[0] for words in found}
    for name, *rest in found:
        assert name in commands, f"winnow {name}"
        flags = {flag for one in commands[name].params for flag in (*one.opts, *one.secondary_opts)}
        assert {word for word in rest if word.startswith("--")} <= flags, f"winnow {name} {rest}"


def test_a_chart_starts_what_the_image_holds() -> None:
    """The charts' own default, entrypoint.sh below Prefect's own folder, is in Prefect's images alone."""
    server = yaml.safe_load((INFRA / "helm/prefect-server.yaml").read_text())["server"]
    worker = yaml.safe_load((INFRA / "helm/prefect-worker.yaml").read_text())["worker"]
    assert server["command"] == worker["command"] == ["/usr/bin/tini", "-g", "--"]
    assert re.search(r"install .*\btini\b", TEXTS[INFRA / "Dockerfile"])
