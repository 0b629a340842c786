"""What there is to start: commands and flows, each named where a person looks for it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from flows import cli
from flows.inspection import show_flows
from flows.serve.pools import SHIPPED


def test_the_list_of_commands_is_not_cut_off_at_80_columns() -> None:
    listed = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "80"}).stdout
    assert "..." not in listed.partition("Commands:")[2]


def test_the_flows_that_can_be_started(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_flows(cli.FLOWS, as_json=False) == 0
    assert capsys.readouterr().out.startswith("curate-text\n")
    assert show_flows(cli.FLOWS, as_json=True) == 0
    held = json.loads(capsys.readouterr().out)
    deployed = yaml.safe_load(SHIPPED.read_text())["deployments"]
    assert held["curate-text"]["deployments"] == [one["name"] for one in deployed]
    for one in deployed:
        assert one["entrypoint"].rpartition(".")[2].replace("_", "-") in held
    for file in (Path(cli.__file__).parent).glob("*.py"):  # a flow that no command starts would be missed here first
        for flow in re.findall(r'^@flow\(name="(\w+)"', file.read_text(), re.MULTILINE):
            # winnow submit carries the same flow to a cluster
            assert flow.removesuffix("_on_ray").replace("_", "-") in held, file
