"""CONTRIBUTING.md's recipe, followed to the letter in a copy of the house: its files, its changes, its commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from flows.demo import write_input
from flows.demo_source import DemoDataMissing
from tasks import stages
from tasks.local_executor import LocalPool
from tasks.source import SourceColumns, open_source
from tasks.stage import Execution, Executor, run_stage
from tasks.store import Store
from tasks.summary import Status

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"`([\w/]+\.py)`")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True)
class Block:
    """A fenced block of one step. ``file``: the last Python file that the text named before it."""

    step: int
    kind: str
    text: str
    file: str


def recipe() -> list[Block]:
    """The blocks between the recipe's heading and the next one, in order."""
    document = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    _, _, rest = document.partition("## Add an operator in one file\n")
    body = re.split(r"^## ", rest, flags=re.MULTILINE)[0]
    blocks: list[Block] = []
    for step, part in enumerate(re.split(r"^### ", body, flags=re.MULTILINE)):
        for match in BLOCK.finditer(part):
            named = FILE.findall(part[: match.start()])
            blocks.append(Block(step, match[1], match[2], named[-1] if named else ""))
    return blocks


def changed(text: str, diff: str) -> str:
    """``text`` with every hunk of ``diff`` applied; what a hunk expects must stand there exactly once."""
    for hunk in re.split(r"^@@.*\n", diff, flags=re.MULTILINE):
        lines = hunk.rstrip("\n").split("\n")
        old = "\n".join(line[1:] for line in lines if line[:1] != "+")
        new = "\n".join(line[1:] for line in lines if line[:1] != "-")
        assert text.count(old) == 1, f"CONTRIBUTING.md expects this exactly once:\n{old}"
        text = text.replace(old, new)
    return text


class House:
    """A copy of the rooms and the operators' tests in which steps are carried out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for room in ("operators", "tasks", "flows", "tests/operators"):
            shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("pyproject.toml", "tests/conftest.py", "tests/toys.py"):
            shutil.copy(ROOT / file, folder / file)
        (folder / ".venv").symlink_to(sys.prefix)

    def follow(self, step: int, kinds: str = "python diff bash") -> str:
        """Carries out the blocks of a step and returns what its commands printed."""
        said = ""
        for block in (one for one in recipe() if one.step == step and one.kind in kinds.split()):
            if block.kind == "bash":
                said += self._command(block.text)
            elif block.kind == "diff":
                path = self.folder / block.file
                path.write_text(changed(path.read_text("utf-8"), block.text), "utf-8")
            else:
                (self.folder / block.file).write_text(block.text, "utf-8")
        return said

    def _command(self, text: str) -> str:
        path = f"{self.folder}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path / "house")


def demo_input(folder: Path) -> None:
    try:
        write_input(folder)
    except DemoDataMissing as error:
        pytest.skip(str(error))


def test_the_recipe_has_its_five_steps() -> None:
    kinds = [(block.step, block.kind, block.file) for block in recipe()]
    assert kinds == [
        (1, "python", "operators/duplicate_lines.py"),
        (2, "python", "tests/operators/test_duplicate_lines.py"),
        (2, "bash", "tests/operators/test_duplicate_lines.py"),
        (3, "diff", "tests/operators/test_base.py"),
        (3, "bash", "tests/operators/test_base.py"),
        (4, "python", "try_out.py"),
        (4, "bash", "try_out.py"),
        (5, "diff", "flows/curate_text.py"),
        (5, "bash", "flows/curate_text.py"),
    ]


def test_a_change_that_does_not_fit_any_more_is_seen() -> None:
    assert changed("one\ntwo\nthree", " one\n-two\n+zwei\n@@\n three\n+four\n") == "one\nzwei\nthree\nfour"
    with pytest.raises(AssertionError, match="exactly once"):
        changed("one\ntwo\ntwo", "-two\n+zwei\n")


def test_operator_test_and_golden_output(house: House) -> None:
    golden = house.folder / "tests" / "operators" / "golden.json"
    assert "DuplicateLines" not in golden.read_text()
    house.follow(1)
    assert "3 passed" in house.follow(2)
    assert house.follow(3).count("1 passed") == 2
    assert "DuplicateLines@1" in golden.read_text()
    source = house.folder / "operators" / "duplicate_lines.py"
    source.write_text(source.read_text().replace("1 - len(set(lines))", "0.5 - len(set(lines))"))
    with pytest.raises(AssertionError, match=r"the output of DuplicateLines@1 changed: raise DuplicateLines\.version"):
        house.follow(3, "bash")


def test_the_operator_runs_as_a_stage_on_real_rows(house: House) -> None:
    demo_input(house.folder / "demo-corpus")
    house.follow(1)
    first, again = house.follow(4), house.follow(4)
    assert '"shards_made": 6' in first and '"status": "done"' in first
    assert '"shards_made": 0' in again and '"shards_before": 6' in again
    [folder] = (house.folder / "tried-out" / "duplicate_lines").iterdir()
    frame = pl.read_parquet(f"{folder}/*.parquet")
    assert frame.height > 500 and set(frame["status"]) == {"ok"}
    assert frame["duplicate_lines"].is_between(0, 1).all() and frame["duplicate_lines"].max() > 0


def test_the_operator_travels_to_a_worker(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in this process, on the local pool, with the class out of the recipe's own module."""
    demo_input(tmp_path / "demo")
    house.follow(1)
    monkeypatch.syspath_prepend(str(house.folder))
    name = "operators.duplicate_lines"
    monkeypatch.setattr("operators.__path__", [str(house.folder / "operators"), str(ROOT / "operators")])
    module = __import__(name, fromlist=["DuplicateLines"])
    monkeypatch.setitem(sys.modules, name, module)
    output = Store(str(tmp_path / "out"))
    source = open_source(str(tmp_path / "demo" / "input"), SourceColumns())
    execution = Execution(Executor.LOCAL, workers=2)
    stage = stages.annotate("duplicate_lines", module.DuplicateLines(batch_size=7), [source], output)
    assert isinstance(execution.pool(stage.resources), LocalPool)
    result = run_stage(stage, output, execution)
    assert result.summary.status is Status.DONE and result.summary.accounts.closed()
    assert result.summary.accounts.rows_in > 500


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_operator_decides_in_a_flow(house: House) -> None:
    demo_input(house.folder / "demo-corpus")
    house.follow(1)
    house.follow(5)
    routes = pl.read_parquet(f"{house.folder}/my-corpus/route/*/*.parquet")
    repeats = pl.read_parquet(f"{house.folder}/my-corpus/duplicate_lines/*/*.parquet")
    shares = repeats["duplicate_lines"]
    assert 0 < shares.filter(routes["route"] == "keep").len() < routes.height
    assert shares.filter(routes["route"] == "keep").max() < 0.1 <= shares.max()
    assert routes.filter(shares >= 0.1)["route_reason"].str.contains("duplicate_lines=").all()
