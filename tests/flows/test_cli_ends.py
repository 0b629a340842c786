"""How a command ends where its output is not taken, where it is interrupted, and what it never repeats."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import cli
from tests.tasks.test_verify import good_run

WINNOW = Path(sys.executable).with_name("winnow")
Main = Callable[..., tuple[object, str, str]]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """Runs the command line in this process: code, standard output, standard error."""

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["winnow", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code, *capsys.readouterr()

    return run


def printing(to: str, *arguments: str) -> tuple[int, str]:
    """Exit code and standard error of a command whose standard output nobody takes."""
    done = subprocess.run(
        ["bash", "-c", f'"$@" {to}; exit ${{PIPESTATUS[0]}}', "-", WINNOW, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_closed_pipe_is_no_verdict(web: Path, tmp_path: Path) -> None:
    """`winnow diff A A | true`: 1 would say that they differ."""
    run = str(tmp_path / "out")
    good_run(web, run)
    for command in (["status", run], ["status", run, "--json"], ["diff", run, run], ["--help"]):
        code, said = printing("| true", *command)
        assert code in (0, 141) and said == "", (command, code, said)


def test_a_full_disk_is_one_line(web: Path, tmp_path: Path) -> None:
    good_run(web, str(tmp_path / "out"))
    for command in (["flows"], ["status", str(tmp_path / "out")]):
        code, said = printing("> /dev/full", *command)
        assert (code, said) == (1, "winnow: input or output: no space left on device\n"), command


def test_ctrl_c_without_a_run_is_one_line(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(url: str, as_json: bool) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.inspection.show_verification", interrupted)
    outcome = main("verify", "/nowhere")
    assert outcome == (130, "", "winnow: interrupted\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "s3://me:CANARY@lake/x"],
        ["diff", "/x", "s3://me:CANARY@lake/x"],
        ["curate-text", "--input", "s3://me:CANARY@lake/x", "--output", "/x"],
        ["curate-text", "--input", "/x", "--output", "sftp://me:CANARY@host/x"],
        ["curate-text", "--input", "/x", "--output", "/y", "--seed", "s3://me:CANARY@lake"],
    ],
)
def test_a_password_in_a_url_is_refused_and_not_repeated(main: Main, arguments: list[str]) -> None:
    code, out, said = main(*arguments)
    assert code == 2 and "CANARY" not in said + out
    assert "holds a password" in said or "--seed" in said


def test_many_complaints_are_cut(main: Main, tmp_path: Path) -> None:
    """A wrong file given as --config is not printed whole."""
    (tmp_path / "c.yaml").write_text("".join(f"x{number}: 1\n" for number in range(50)))
    said = main("curate-text", "--config", str(tmp_path / "c.yaml"))[2]
    assert said.count("is no parameter") < 6 and said.endswith("; and 47 more\n")
