"""Dashboard and alert rules speak of metrics that winnow exposes, in PromQL that parses, and Prometheus runs them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from flows.parameters import CurateText
from tasks import metrics
from tasks.metrics import RunMetrics
from tasks.progress import Progress
from tasks.summary import Accounts, RunSummary
from tests.conftest import free_port
from tests.tasks.test_metrics import carried_out
from tests.toys import Picky

INFRA = Path(__file__).resolve().parents[2] / "infra"
DASHBOARD = json.loads((INFRA / "grafana" / "winnow.json").read_text())
RULES = yaml.safe_load((INFRA / "prometheus" / "rules.yaml").read_text())["groups"][0]["rules"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
FROM_PROMETHEUS = {"job", "instance", "le"}
UNITS = {"short", "none", "percentunit", "s", "Bps", "rowsps"}


def everything() -> dict[str, set[str]]:
    """Name of every sample that winnow can expose -> names of its labels."""
    counts = {"one": 1}
    progress = Progress(
        "toy",
        total=2,
        found=0,
        made=1,
        eta_seconds=1.0,
        ready_seconds=1.0,
        accounts=Accounts(rows_in=1, outcomes=counts, rows_out=1, outputs=counts, reasons=counts, tokens=counts),
        notes={"requests": 2, "generated": 1},
        spent={"retries": 1},
    )
    parameters = {"max_quarantine": CurateText.model_fields["max_quarantine"].default}
    run = RunMetrics(RunSummary(run_id="r", flow="f", started="", input="", output="", parameters=parameters))
    run.observe(progress)
    return {sample.name: {*sample.labels} for family in run.collect() for sample in family.samples}


KNOWN = everything()


def selectors(expression: str) -> list[Any]:
    """Parses, with what Grafana would put in place of its variables, and gives every selector of a series."""
    plain = expression.replace("$__rate_interval", "1m").replace("$run", ".*").replace("$stage", ".*")
    assert "$" not in plain, plain
    found: list[Any] = []

    class Visitor:
        def pre_visit(self, node: Any) -> bool:
            if isinstance(node, promql_parser.VectorSelector):
                found.append(node)
            if isinstance(node, promql_parser.MatrixSelector):
                found.append(node.vector_selector)
            return True

    promql_parser.walk(promql_parser.parse(plain), Visitor().pre_visit)
    return found


def speaks_of_what_there_is(expression: str) -> set[str]:
    names = set()
    for one in selectors(expression):
        assert one.name in KNOWN, f"no metric {one.name}"
        labels = {matcher.name for matcher in one.matchers.matchers}
        assert labels <= KNOWN[one.name] | FROM_PROMETHEUS, f"{one.name} has no label among {labels}"
        names.add(one.name)
    grouped = {
        label for labels in re.findall(r"(?:by|on|group_left) \(([^)]*)\)", expression) for label in words(labels)
    }
    assert grouped <= FROM_PROMETHEUS.union(*(KNOWN[name] for name in names)), grouped
    return names


def words(labels: str) -> list[str]:
    return re.findall(r"\w+", labels)


@pytest.mark.parametrize(("title", "expression"), TARGETS)
def test_every_panel_parses_and_asks_for_metrics_that_exist(title: str, expression: str) -> None:
    names = speaks_of_what_there_is(expression)
    assert names
    assert "$run" in expression, "the variable for the run has no effect here"
    if any("stage" in KNOWN[name] for name in names):
        assert "$stage" in expression, "the variable for the stage has no effect here"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_parses_and_says_what_to_do(rule: dict[str, Any]) -> None:
    assert speaks_of_what_there_is(rule["expr"])
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"] and rule["annotations"]["description"]


def test_every_metric_is_shown_or_watched() -> None:
    used = {name for _, expression in TARGETS for name in speaks_of_what_there_is(expression)}
    used |= {name for rule in RULES for name in speaks_of_what_there_is(rule["expr"])}
    used |= {one.name for note in DASHBOARD["annotations"]["list"] for one in selectors(note["expr"])}
    unused = {name for name in KNOWN if name not in used}
    assert unused == {
        "winnow_busy_ratio",  # of the whole stage; panels show that of the last minutes
        "winnow_output_rows_total",
        "winnow_shard_duration_seconds_count",
        "winnow_shard_duration_seconds_sum",
        "winnow_stage_elapsed_seconds",
    }


def test_panels_have_units_a_place_and_a_source() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    for panel in PANELS:
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        if panel["type"] == "stat":
            assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None


def test_variables_ask_for_labels_that_exist() -> None:
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert variables.keys() == {"datasource", "run", "stage"}
    for name in ("run", "stage"):
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables[name]["definition"]).groups()  # type: ignore[union-attr]
        assert label in KNOWN[metric] and variables[name]["includeAll"]


def test_what_is_provisioned_and_scraped_is_there() -> None:
    scraped = yaml.safe_load((INFRA / "prometheus" / "prometheus.yaml").read_text())
    assert {job["job_name"] for job in scraped["scrape_configs"]} == {"winnow", "node"}
    assert all((INFRA / "prometheus" / name).is_file() for name in scraped["rule_files"])
    provisioning = INFRA / "grafana" / "provisioning"
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"][0]
    assert source["type"] == DASHBOARD["templating"]["list"][0]["query"]
    assert yaml.safe_load((provisioning / "dashboards" / "winnow.yaml").read_text())["providers"][0]["type"] == "file"


def installed(program: str) -> str:
    """Prometheus is no Python package: these tests run where the system has it (Debian: ``prometheus``)."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed: apt install prometheus")
    return found


@pytest.mark.slow
def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    promtool, rules = installed("promtool"), INFRA / "prometheus"
    for command in (["check", "config", "prometheus.yaml"], ["test", "rules", "rules_test.yaml"]):
        done = subprocess.run([promtool, *command], cwd=rules, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 and "SUCCESS" in done.stdout, done.stdout + done.stderr


@pytest.fixture
def prometheus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a real Prometheus that scrapes this process; ended by its process id."""
    program = installed("prometheus")
    scraped, served = free_port(), free_port()
    monkeypatch.setenv(metrics.PORT, str(scraped))
    config = yaml.safe_load((INFRA / "prometheus" / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"] = [
        {"job_name": "winnow", "static_configs": [{"targets": [f"localhost:{scraped}"]}], "scrape_timeout": "1s"}
    ]
    config["rule_files"] = [str(INFRA / "prometheus" / "rules.yaml")]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    command = [program, f"--config.file={tmp_path / 'prometheus.yaml'}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    command += [f"--web.listen-address=127.0.0.1:{served}"]
    with (tmp_path / "prometheus.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ})
    try:
        yield f"http://127.0.0.1:{served}"
    finally:
        server.kill()
        server.wait(10)


def asked(url: str, path: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{url}{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
        return json.load(answer)["data"]


@pytest.mark.slow
def test_a_real_prometheus_scrapes_a_run_and_answers_every_panel(prometheus: str, web: Path, tmp_path: Path) -> None:
    (web / "part-3.parquet").write_bytes(b"PAR1 no, it is not PAR1")
    summary = carried_out({"picky": Picky(refuse="Document 12 ")}, web, str(tmp_path / "out"))
    deadline, seen = time.monotonic() + 60, 0.0
    while seen < 4 and time.monotonic() < deadline:  # scrapes, so that rates have something to go by
        time.sleep(0.5)
        try:
            found = asked(prometheus, "/api/v1/query", query="count_over_time(winnow_run_info[1m])")["result"]
            seen = float(found[0]["value"][1]) if found else 0.0
        except OSError:
            continue
    assert seen >= 4, (tmp_path / "prometheus.log").read_text()[-2000:]

    def ask(expression: str) -> Any:
        plain = expression.replace("$__rate_interval", "1m").replace("$run", summary.run_id).replace("$stage", ".*")
        return asked(prometheus, "/api/v1/query", query=plain)["result"]

    answers = {title: ask(expression) for title, expression in TARGETS}  # an error raises
    known = {
        title: {one["metric"].get("outcome"): float(one["value"][1]) for one in answers[title]} for title in answers
    }
    assert known["Rows in, by outcome"] == {"ok": 29.0, "quarantined": 1.0}
    assert known["Failed shards"] == {None: 1.0} and known["Shards finished"] == {None: 0.75}
    assert known["Quarantined rows"][None] == pytest.approx(1 / 30)
    assert [one["metric"]["status"] for one in answers["State"]] == ["failed"]
    assert answers["Runs"][0]["metric"]["run_id"] == summary.run_id
    wrong = ask(
        'winnow_rows_total{stage=~"$stage"} * on (job, instance) group_left (run_id) winnow_run_info{run_id="x"}'
    )
    assert wrong == []
    firing = {one["metric"]["alertname"] for one in ask('ALERTS{alertstate="firing"}')}
    assert {"WinnowRunFailed", "WinnowShardsFailed"} <= firing and "WinnowAccountsOpen" not in firing
