"""The Dockerfile and the scripts, by the linters of their own kind; nothing is built here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
DOCKERFILE = (INFRA / "Dockerfile").read_text()


def lint(tool: str, *words: str) -> str:
    program = Path(sys.executable).parent / tool
    if not program.exists():
        pytest.skip(f"{tool} is not installed: run make install-dev")
    ended = subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)
    return ended.stdout + ended.stderr


def test_hadolint_finds_nothing() -> None:
    assert lint("hadolint", str(INFRA / "Dockerfile")) == ""


def test_hadolint_sees_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN cd /tmp && sudo apt-get install git\n")
    assert "DL3007" in lint("hadolint", str(tmp_path / "Dockerfile"))


def test_shellcheck_finds_nothing() -> None:
    assert lint("shellcheck", *map(str, sorted(INFRA.glob("*.sh")))) == ""


def test_what_is_copied_is_there_and_let_through() -> None:
    let_through = {line[1:] for line in (INFRA / "Dockerfile.dockerignore").read_text().split() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    words = {word.replace("${LOCK}", "*") for line in copied for word in line.split()}
    assert words == let_through
    assert all(list(ROOT.glob(word)) for word in words)


def test_it_runs_as_nobody_and_is_asked_for_its_health() -> None:
    last = DOCKERFILE[DOCKERFILE.rindex("FROM ") :]
    assert re.search(r"^USER 1001:1001$", last, re.MULTILINE) and "HEALTHCHECK" in last
    for lock in re.findall(r"LOCK=(\w+)", DOCKERFILE):
        assert (ROOT / "requirements" / f"{lock}.lock").exists()
