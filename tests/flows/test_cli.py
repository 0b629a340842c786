"""The command line: flags made from the parameters, files, exit codes, and one line for everything that is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flows import cli
from flows.parameters import CurateText
from tasks.dataset import HIDDEN
from tasks.store import Store
from tests.tasks.test_verify import good_run

WINNOW = Path(sys.executable).with_name("winnow")
REQUIRED = ["curate-text", "--input", "in", "--output", "out"]


def winnow(*arguments: str, cwd: Path | None = None) -> tuple[subprocess.CompletedProcess[str], float]:
    """The installed command in a process of its own, and its seconds."""
    began = time.monotonic()
    done = subprocess.run([WINNOW, *arguments], capture_output=True, text=True, timeout=60, cwd=cwd, check=False)
    return done, time.monotonic() - began


class Outcome:
    """What ``main`` did in this process: code, standard output, standard error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["winnow", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        self.code = caught.value.code
        self.out, self.err = capsys.readouterr()


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda *arguments: Outcome(monkeypatch, capsys, *arguments)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[CurateText, bool]]:
    """The runs that would have been started."""
    runs: list[tuple[CurateText, bool]] = []

    def start(parameters: CurateText, as_json: bool) -> int:
        runs.append((parameters, as_json))
        return 0

    monkeypatch.setattr("flows.start.start", start)
    return runs


def refused(outcome: Outcome) -> str:
    """The one line of a refusal."""
    assert outcome.code == 2 and outcome.out == ""
    line, rest = outcome.err.split("\n", 1)
    assert rest == "" and line.startswith("winnow: ")
    return line.removeprefix("winnow: ")


# -- help ----------------------------------------------------------------------------------------------------------


def test_help_comes_in_under_a_second() -> None:
    for arguments in (["--help"], ["curate-text", "--help"]):
        seconds = []
        for _ in range(4):  # the best of some: the machine may be busy with other things
            done, took = winnow(*arguments)
            assert done.returncode == 0 and "Usage: winnow" in done.stdout and done.stderr == ""
            seconds.append(took)
            if took < 1.0:
                break
        assert min(seconds) < 1.0, seconds


def test_every_parameter_is_a_flag_with_its_help() -> None:
    result = CliRunner().invoke(cli.app, ["curate-text", "--help"], env={"COLUMNS": "400"})
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    for name, field in CurateText.model_fields.items():
        flag = "--" + name.replace("_", "-")
        assert re.search(rf"{flag}\b", text), flag
        assert field.description and " ".join(field.description.split()) in text, flag
    assert "--config" in text and "--json" in text


def test_every_command_has_help_and_json() -> None:
    listed = CliRunner().invoke(cli.app, ["--help"]).stdout
    for name in ("curate-text", "demo", "flows", "status", "verify"):
        assert name in listed
        shown = CliRunner().invoke(cli.app, [name, "--help"])
        assert shown.exit_code == 0 and "--json" in shown.stdout, name


def test_without_arguments_the_help_is_shown(main: Any) -> None:
    outcome = main()
    assert outcome.code == 0 and "curate-text" in outcome.out


# -- parameters ----------------------------------------------------------------------------------------------------

VALUES: dict[str, tuple[list[str], Any]] = {
    "credentials": (["my-bucket"], "my-bucket"),
    "columns": (["text=content,id=doc", "url=u"], {"text": "content", "id": "doc", "url": "u"}),
    "seed": (["7"], 7),
    "limit": (["100"], 100),
    "shards": (["web/*,news/*", "a.parquet"], ("web/*", "news/*", "a.parquet")),
    "first_date": (["2026-03-14"], date(2026, 3, 14)),
    "last_date": (["2026-03-15"], date(2026, 3, 15)),
    "keep": (["harm_score < 2"], "harm_score < 2"),
    "tag": (["harm_score = 5"], "harm_score = 5"),
    "tag_probability": (["0.1"], 0.1),
    "rephrase_share": (["0.25"], 0.25),
    "styles": (["easy,qa"], ("easy", "qa")),
    "piece_tokens": (["64"], 64),
    "max_new_tokens": (["9"], 9),
    "temperature": (["0.7"], 0.7),
    "model": (["/models/x"], "/models/x"),
    "engine": (["openai"], "openai"),
    "engine_url": (["http://127.0.0.1:8000/v1"], "http://127.0.0.1:8000/v1"),
    "engine_model": (["served"], "served"),
    "engine_concurrency": (["8"], 8),
    "requests_per_minute": (["60"], 60),
    "tokens_per_minute": (["9000"], 9000),
    "dtype": (["float32"], "float32"),
    "engine_gpus": (["1"], 1.0),
    "engine_threads": (["2"], 2),
    "synthetic_share": (["none"], None),
    "shard_tokens": (["5000"], 5000),
    "max_quarantine": (["0.5"], 0.5),
    "executor": (["local"], "local"),
    "ray_address": (["auto"], "auto"),
    "workers": (["3"], 3),
    "retries": (["0"], 0),
    "stall_seconds": (["1.5"], 1.5),
    "until": (["2030-01-02T03:04:05"], datetime(2030, 1, 2, 3, 4, 5)),  # noqa: DTZ001
    "max_tokens": (["1000"], 1000),
}
SWITCHES = {"rephrase": False, "build": False, "single_writer": True}


def test_every_parameter_can_be_given_as_a_flag(main: Any, started: list[Any]) -> None:
    assert {*VALUES, *SWITCHES, "input", "output"} == set(CurateText.model_fields), "a new parameter: try its flag here"
    arguments = list(REQUIRED)
    for name, (given, _) in VALUES.items():
        for one in given:
            arguments += [f"--{name.replace('_', '-')}", one]
    outcome = main(*arguments, "--no-rephrase", "--no-build", "--single-writer", "--json")
    assert outcome.code == 0, outcome.err
    ((parameters, as_json),) = started
    assert as_json is True
    expected = {"input": "in", "output": "out", **{name: value for name, (_, value) in VALUES.items()}, **SWITCHES}
    assert parameters.model_dump() == expected


def test_defaults_are_the_models_own(main: Any, started: list[Any]) -> None:
    assert main(*REQUIRED).code == 0
    assert started == [(CurateText(input="in", output="out"), False)]


def test_flags_win_over_the_file_and_the_file_over_the_defaults(main: Any, started: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    held = {"input": "from-file", "output": "from-file", "seed": 3, "limit": 50, "styles": ["qa"], "rephrase": False}
    file.write_text(yaml.safe_dump({**held, "columns": {"text": "content"}}))
    assert main("curate-text", "--config", str(file), "--output", "flag", "--limit", "9", "--rephrase").code == 0
    parameters = started[0][0]
    assert (parameters.input, parameters.output) == ("from-file", "flag")
    assert (parameters.seed, parameters.limit, parameters.styles) == (3, 9, ("qa",))
    assert parameters.rephrase is True and parameters.columns == {"text": "content"}
    assert parameters.retries == CurateText.model_fields["retries"].default


def test_a_flag_can_take_back_what_the_file_sets(main: Any, started: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("limit: 50\n")
    assert main(*REQUIRED, "--config", str(file), "--limit", "none").code == 0
    assert started[0][0].limit is None


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--nope", "1"], "No such option: --nope.*see winnow curate-text --help"),
        (["--seed"], "--seed.* requires an argument"),
        (["stray"], "unexpected extra argument"),
        (["--seed", "abc"], "--seed: input should be a valid integer.*given 'abc'"),
        (["--limit", "0"], "--limit: input should be greater than or equal to 1"),
        (["--rephrase-share", "1.5"], "--rephrase-share: input should be less than or equal to 1"),
        (["--styles", "easy,loud"], "--styles.1: input should be 'easy', 'medium', 'hard' or 'qa'.*given 'loud'"),
        (["--executor", "slurm"], "--executor: input should be 'ray' or 'local'"),
        (["--columns", "content"], "'content': write NAME=VALUE, such as text=content"),
        (["--until", "tomorrow"], "--until: input should be a valid datetime"),
        (["--seed", "x", "--limit", "y"], "--seed: .*; --limit: "),
    ],
)
def test_a_wrong_parameter_is_one_line(main: Any, started: list[Any], arguments: list[str], line: str) -> None:
    assert re.search(line, refused(main(*REQUIRED, *arguments)))
    assert started == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("sede: 3\n", "--sede is no parameter; see --help"),
        ("seed: [1]\n", "--seed: input should be a valid integer"),
        ("seed: -1\n", "--seed: input should be greater than or equal to 0"),
        ("1: 2\n", "--1: keys should be strings"),
        ("", "run.yaml: holds no parameters"),
        ("just words\n", "run.yaml: holds no parameters"),
        ("a: [1\n", "run.yaml: not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "run.yaml: not valid YAML"),
        ("columns: text\n", "--columns: input should be a valid dictionary"),
    ],
)
def test_a_wrong_file_is_one_line(main: Any, started: list[Any], tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert line in refused(main(*REQUIRED, "--config", str(file)))
    assert started == []


def test_a_file_that_cannot_be_read_is_one_line(main: Any, tmp_path: Path) -> None:
    assert "none.yaml: cannot be read" in refused(main(*REQUIRED, "--config", str(tmp_path / "none.yaml")))
    assert "cannot be read" in refused(main(*REQUIRED, "--config", str(tmp_path)))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    assert "binary.yaml: not valid YAML" in refused(main(*REQUIRED, "--config", str(tmp_path / "binary.yaml")))


def test_missing_parameters_are_named(main: Any) -> None:
    assert refused(main("curate-text")) == "--input is missing; --output is missing"


def test_an_unknown_command_is_one_line(main: Any) -> None:
    assert "No such command 'curate'" in refused(main("curate"))
    assert "Missing argument 'URL'" in refused(main("status"))


# -- refusals of the real command ----------------------------------------------------------------------------------


def assert_refused(done: subprocess.CompletedProcess[str], seconds: float, line: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stdout == "" and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert line in done.stderr
    assert seconds < 10, seconds


def test_a_missing_input_is_refused_in_seconds(tmp_path: Path) -> None:
    done, seconds = winnow("curate-text", "--input", "/no/such/place", "--output", str(tmp_path / "out"))
    assert_refused(done, seconds, "winnow: /no/such/place: no .parquet or .jsonl file found there")
    assert not (tmp_path / "out").exists()


def test_an_unknown_flag_is_refused_in_seconds() -> None:
    done, seconds = winnow("curate-text", "--inptu", "x")
    assert_refused(done, seconds, "--input")


# -- status and verify ---------------------------------------------------------------------------------------------


def test_status_and_verify_of_a_good_run(main: Any, web: Path, root: str) -> None:
    good_run(web, root)
    status, held = main("status", root), main("status", root, "--json")
    assert (status.code, held.code) == (0, 0) and "picky" in status.out and held.err == ""
    summary = json.loads(held.out)
    assert summary["status"] == "done" and [one["name"] for one in summary["stages"]] == ["length", "picky", "route"]
    verified, held = main("verify", root), main("verify", root, "--json")
    assert (verified.code, held.code) == (0, 0) and "everything is as recorded" in verified.out
    found = json.loads(held.out)
    assert found["ok"] is True and [one["rows"] for one in found["stages"]] == [30, 30, 30]


def test_verify_of_a_bad_run_ends_with_one_and_names_it(main: Any, web: Path, root: str) -> None:
    lost = good_run(web, root)[0].dataset.shards[0].path
    store = Store(root)
    store.fs.rm_file(store.absolute(lost))
    verified, held = main("verify", root), main("verify", root, "--json")
    assert (verified.code, held.code) == (1, 1)
    assert f"problem: {lost}: is gone" in verified.out
    assert json.loads(held.out)["stages"][0]["problems"][0].startswith(f"{lost}: is gone")


def test_status_of_a_run_that_did_not_end_well_is_one(main: Any, web: Path, root: str) -> None:
    from tasks.summary import Status

    good_run(web, root, Status.FAILED)
    assert main("status", root).code == 1
    assert main("verify", root).code == 1


@pytest.mark.parametrize("command", ["status", "verify"])
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_empty_and_missing_roots_are_refused(
    main: Any, root: str, tmp_path: Path, command: str, flags: list[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for url in (root, str(empty), "nothere://x"):
        assert url in refused(main(command, url, *flags))


@pytest.mark.parametrize("command", ["status", "verify"])
def test_an_unreadable_summary_is_refused(main: Any, tmp_path: Path, command: str) -> None:
    (tmp_path / HIDDEN / "runs").mkdir(parents=True)
    (tmp_path / HIDDEN / "runs" / "1.json").write_text("{")
    assert "not a readable summary of a run" in refused(main(command, str(tmp_path)))


def test_the_real_command_says_the_same(web: Path, tmp_path: Path) -> None:
    root = str(tmp_path / "out")
    good_run(web, root)
    done, _ = winnow("verify", root, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["ok"] is True and done.stderr == ""
    done, seconds = winnow("status", str(tmp_path / "none"))
    assert_refused(done, seconds, "no run has ended here")


# -- demo ----------------------------------------------------------------------------------------------------------


def test_demo_refuses_a_folder_of_something_else(main: Any, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("")
    assert "holds letters.txt and no winnow run" in refused(main("demo", "--output", str(tmp_path)))
    assert "is a file; give --output a folder" in refused(main("demo", "--output", str(tmp_path / "letters.txt")))
    assert sorted(os.listdir(tmp_path)) == ["letters.txt"]
