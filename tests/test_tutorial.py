"""The tutorial is followed to the letter: every command of docs/tutorial.md, in one shell, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).resolve().parents[1] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
# The tests run in an environment that is installed, and outside of the clone.
INSTEAD = {"make demo": "winnow demo", "source .venv/bin/activate": ":"}


def script() -> str:
    text = "\n".join(BLOCK.findall(TUTORIAL.read_text("utf-8")))
    for command, instead in INSTEAD.items():
        assert command in text
        text = text.replace(command, instead)
    return f"set -euxo pipefail\n{text}"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_command_of_the_tutorial_works(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script()],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1400,
    )
    said = f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    assert done.returncode == 0, said
    promised = re.search(r"^(✓ done: .*)$", TUTORIAL.read_text("utf-8"), re.MULTILINE)
    assert promised is not None and promised[1] in done.stdout, said
    assert "they differ" in done.stdout
    assert "everything is as recorded" in done.stdout
    assert len(list((tmp_path / "demo-corpus" / "corpus").iterdir())) == 1, "gc --delete leaves the last corpus alone"
