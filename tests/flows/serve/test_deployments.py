"""The file of deployments: what is shipped, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flows.parameters import CurateText
from flows.serve.deployments import read
from flows.serve.pools import POOLS, SHIPPED, BadDeployments

ENTRY = "{name: a, entrypoint: m.f, description: d, work_pool: {name: p}"


def test_the_shipped_file_is_valid_and_tied_to_no_machine() -> None:
    held = read()
    assert {one.name for one in held.deployments} == {"nightly", "ad-hoc", "ad-hoc-gpu", "backfill"}
    assert {one.work_pool.name for one in held.deployments} <= {pool.name for pool in POOLS}
    assert all(":" not in one.entrypoint and "/" not in one.entrypoint for one in held.deployments)
    for one in held.deployments:
        given = one.parameters.get("parameters", {})
        if not {"input", "output"} <= given.keys():  # it would fail every time
            assert not any(schedule.active for schedule in one.schedules), one.name


def test_only_gpu_deployments_ask_for_gpus() -> None:
    pools = {pool.name: pool.gpus for pool in POOLS}
    for one in read().deployments:
        assert bool(one.parameters.get("parameters", {}).get("engine_gpus")) == pools[one.work_pool.name]


def test_a_backfill_makes_stages_and_no_corpus() -> None:
    """A corpus of the chosen shards alone would pass for the corpus of all."""
    given = {one.name: one.parameters.get("parameters", {}) for one in read().deployments}
    assert given["backfill"] == {"build": False}
    assert all(parameters.get("build", True) for name, parameters in given.items() if name != "backfill")


def test_what_is_shipped_fits_the_flows_parameters() -> None:
    for one in read().deployments:
        CurateText.model_validate({"input": "/in", "output": "/out", **one.parameters.get("parameters", {})})


def test_a_cron_and_an_interval_reach_prefect(tmp_path: Path) -> None:
    file = tmp_path / "prefect.yaml"
    schedules = "[{slug: a, cron: '5 4 * * *', timezone: Europe/Berlin}, {slug: b, interval: 90, active: false}]"
    file.write_text(f"deployments: [{ENTRY}, schedules: {schedules}}}]")
    cron, interval = (one.prefect() for one in read(file).deployments[0].schedules)
    assert (cron.schedule.cron, cron.schedule.timezone, cron.active) == ("5 4 * * *", "Europe/Berlin", True)
    assert (interval.schedule.interval.total_seconds(), interval.active) == (90, False)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("deployments: [", "not valid YAML"),
        ("deployments: [{name: a}]", "deployments.0.entrypoint: field required"),
        (f"deployments: [{ENTRY}, schedules: [{{slug: a}}]}}]", "either a cron or an interval"),
        (f"deployments: [{ENTRY}, shedules: []}}]", "deployments.0.shedules: extra inputs are not permitted"),
        ("", "input should be a valid dictionary"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "prefect.yaml"
    file.write_text(text)
    with pytest.raises(BadDeployments) as error:
        read(file)
    assert told in str(error.value) and str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadDeployments, match=r"cannot be read .No such file or directory.; install winnow again"):
        read(tmp_path / "none.yaml")


def test_prefect_reads_the_same_file() -> None:
    assert yaml.safe_load(SHIPPED.read_text())["pull"] == [
        {"prefect.deployments.steps.set_working_directory": {"directory": "."}}
    ]
