"""`winnow serve` at work, on the real server with real workers and real runs. One server for all of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient

from flows.serve.deployments import read, register
from flows.serve.pools import SHIPPED
from tests.conftest import free_port
from tests.flows.serve.serving import WINNOW, Serving, alive, descendants, until
from tests.toys import documents

pytestmark = pytest.mark.timeout(300)

DEPLOYMENTS = {
    "curate_text/nightly": "winnow-cpu",
    "curate_text/ad-hoc": "winnow-cpu",
    "curate_text/ad-hoc-gpu": "winnow-gpu",
    "curate_text/backfill": "winnow-cpu",
}
NAP = "tests.flows.serve.naps.nap"
SHARDS = 120
STAGES = ("language", "harm_score", "tokens", "route")  # of a run without rephrasing and build


def put(serving: Serving, folder: Path, *deployments: dict[str, Any]) -> None:
    """Adds deployments to the server by the mechanism of the shipped file."""
    file = folder / "prefect.yaml"
    file.write_text(yaml.safe_dump({"name": "winnow", "deployments": list(deployments)}))
    with SyncPrefectClient(f"{serving.url}/api") as client:
        assert register(client, read(file)).trouble == []


@pytest.fixture(scope="module", autouse=True)
def naps(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the naps of a deployment that runs every minute: on the server from the beginning, looked at last."""
    folder = tmp_path_factory.mktemp("every-minute")
    every = {"slug": "minute", "cron": "* * * * *", "timezone": "UTC"}
    base = {"entrypoint": NAP, "description": "A nap.", "parameters": {"folder": str(folder)}}
    every_minute = {**base, "name": "every-minute", "schedules": [every], "work_pool": {"name": "winnow-cpu"}}
    put(serving, folder, every_minute, {**base, "name": "on-gpu", "work_pool": {"name": "winnow-gpu"}})
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for shard in range(SHARDS):
        pq.write_table(documents(2, shard * 2), folder / f"part-{shard:03}.parquet")
    return folder


def small(source: Path, output: Path, **more: Any) -> dict[str, Any]:
    values = {"input": str(source), "output": str(output), "rephrase": False, "executor": "local", "workers": 1}
    return {"parameters": {**values, "max_quarantine": 1.0, **more}}


def test_server_and_ui_answer_on_loopback_alone(serving: Serving) -> None:
    page = httpx.get(serving.url, trust_env=False)
    assert page.status_code == 200 and "Prefect" in page.text
    assert serving.get("/health") is True
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = [row[1] for row in listening if row[3] == "0A" and row[1].endswith(f":{serving.port:04X}")]
    assert ours == [f"0100007F:{serving.port:04X}"]  # 127.0.0.1 and nothing else


def test_a_page_of_another_site_may_not_use_the_api(serving: Serving) -> None:
    asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    answer = serving.api.options("/flow_runs/filter", headers=asked)
    assert "access-control-allow-origin" not in answer.headers
    own = serving.api.options("/flow_runs/filter", headers={**asked, "Origin": f"http://localhost:{serving.port}"})
    assert own.headers["access-control-allow-origin"] == f"http://localhost:{serving.port}"


def test_the_screen_names_what_is_there(serving: Serving) -> None:
    text = serving.text()
    assert serving.url in text and str(serving.home) in text
    for name, pool in DEPLOYMENTS.items():
        assert any(line.split()[:2] == [name, pool] for line in text.splitlines()), name
    assert "paused (0 2 * * * UTC): set input and output" in text
    assert all(len(line) <= 80 for line in text.splitlines() if str(serving.home) not in line)
    assert "Traceback" not in text


def test_every_deployment_has_its_pool_form_and_schedule(serving: Serving) -> None:
    for name, pool in DEPLOYMENTS.items():
        one = serving.deployment(name)
        assert one["work_pool_name"] == pool and one["enforce_parameter_schema"]
        assert one["entrypoint"] == "flows.curate_text.curate_text" and not one["path"]
        form = one["parameter_openapi_schema"]["definitions"]["CurateText"]
        assert {"input", "output", "keep", "shards", "first_date"} <= form["properties"].keys()
        assert form["required"] == ["input", "output"]
        active = [schedule["active"] for schedule in one["schedules"]]
        assert active == ([False] if name.endswith("/nightly") else [])
        assert not one["pull_steps"]  # no folder of this machine


def test_pools_have_their_limits_and_a_worker_each(serving: Serving) -> None:
    for name, limit in {"winnow-cpu": 2, "winnow-gpu": 1}.items():
        assert serving.get(f"/work_pools/{name}")["concurrency_limit"] == limit

        def online(pool: str = name) -> bool:
            workers = serving.post(f"/work_pools/{pool}/workers/filter", {})
            return [one["status"] for one in workers] == ["ONLINE"]

        until(online, 30)


def test_the_kind_of_block_for_credentials_is_there_with_its_form(serving: Serving) -> None:
    kind = serving.get("/block_types/slug/winnow-credentials")
    assert kind["name"] == "Winnow credentials" and "`credentials`" in kind["description"]
    of_it = {"block_schemas": {"block_type_id": {"any_": [kind["id"]]}}}
    fields = serving.post("/block_schemas/filter", of_it)[0]["fields"]["properties"]
    assert {"aws_secret_access_key", "engine_api_key", "hf_token", "environment"} <= fields.keys()
    secret = [name for name, one in fields.items() if "password" in str(one)]
    assert {"aws_secret_access_key", "aws_session_token", "engine_api_key", "hf_token"} <= set(secret)


@pytest.mark.slow
def test_a_run_that_names_no_block_fails_in_one_line(serving: Serving, tmp_path: Path) -> None:
    run = serving.start("curate_text/ad-hoc", small(tmp_path, tmp_path / "out", credentials="nowhere"))
    state = serving.ended(run)
    assert state["type"] == "FAILED" and "credentials 'nowhere': no such block at http" in state["message"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"credentials": "sk-0123456789"}, "credentials"),
        ({"seed": -1}, "parameters.seed"),
        ({"tag_probability": 2}, "tag_probability"),
        ({"styles": ["odd"]}, "styles"),
        ({"no_such": 1}, "no_such"),
        ({"output": None}, "output"),
    ],
)
def test_a_wrong_parameter_is_refused_before_a_run_exists(
    serving: Serving, tmp_path: Path, wrong: dict[str, Any], named: str
) -> None:
    deployment = serving.deployment("curate_text/ad-hoc")["id"]
    of_it = {"deployments": {"id": {"any_": [deployment]}}}
    before = serving.runs(**of_it)
    body = {"parameters": {"parameters": small(tmp_path, tmp_path)["parameters"] | wrong}}
    answer = serving.api.post(f"/deployments/{deployment}/create_flow_run", json=body)
    assert answer.status_code in (409, 422) and named in answer.text, answer.text
    assert serving.runs(**of_it) == before


def test_an_ad_hoc_run_completes_and_leaves_its_artifacts(serving: Serving, many: Path, tmp_path: Path) -> None:
    source = tmp_path / "three"
    source.mkdir()
    for file in sorted(many.iterdir())[:3]:
        shutil.copy(file, source)
    run = serving.start("curate_text/ad-hoc", small(source, tmp_path / "out"))
    assert serving.ended(run)["type"] == "COMPLETED", serving.text()
    held = serving.artifacts(run)
    kinds = {key: held[key]["type"] for key in ("language-progress", "language-accounts", "curate-text-summary")}
    assert kinds == {"language-progress": "progress", "language-accounts": "table", "curate-text-summary": "markdown"}
    assert held["language-progress"]["data"] == 100.0
    rows = json.loads(held["curate-text-accounts"]["data"])
    language = [row for row in rows if row["stage"] == "language" and row["what"] == "ok"]
    assert language and all(6 in row.values() for row in language), rows
    assert f"127.0.0.1:{serving.port + 1}/" in held["curate-text-report"]["data"]
    until(lambda: "ended: Completed" in serving.text(), 30)
    logs = serving.post("/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}})
    messages = [one["message"] for one in logs]
    assert any(one.startswith("language") and "3 shards" in one for one in messages), messages


@pytest.mark.slow
def test_a_run_with_gpus_is_refused_in_the_pool_without(serving: Serving, tmp_path: Path) -> None:
    run = serving.start("curate_text/ad-hoc", small(tmp_path, tmp_path / "out", engine_gpus=1))
    state = serving.ended(run)
    assert state["type"] == "FAILED" and "ad-hoc-gpu" in state["message"]


def cancelled(serving: Serving, many: Path, output: Path) -> dict[str, Any]:
    """Summary of a run that was cancelled when some shards were done. On a quick machine that may be a later stage."""
    run = serving.start("curate_text/ad-hoc", small(many, output, build=False))
    until(lambda: len(list(output.glob("language/**/*.parquet"))) >= 5, 120)
    processes = serving.engines("winnow-cpu")
    assert processes
    processes += [below for pid in processes for below in descendants(pid)]
    serving.cancel(run)
    state = serving.ended(run)
    assert state["type"] == "CANCELLED" and "cancelled in Prefect" in state["message"]
    until(lambda: not any(alive(pid) for pid in processes), 60)
    logs = serving.post("/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}})
    assert [one["message"] for one in logs if one["message"].startswith("Finished in state Cancelled")], logs
    assert serving.state(run)["id"] == state["id"]  # the worker has not put another state over it
    [summary] = summaries(output)
    return summary


def test_a_cancelled_run_drains(serving: Serving, many: Path, tmp_path: Path) -> None:
    summary = cancelled(serving, many, tmp_path / "out")
    assert summary["status"] == "bounded" and "cancelled in Prefect" in summary["messages"][-1]
    made = shards_made(summary)
    assert 5 <= sum(made.values()) < SHARDS * len(STAGES) and not any(one["failures"] for one in summary["stages"])
    for name, count in made.items():  # no shard was cut off
        assert len(list(tmp_path.glob(f"out/{name}/**/*.parquet"))) == count


@pytest.mark.slow
def test_the_run_after_a_cancelled_one_goes_on(serving: Serving, many: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    made = shards_made(cancelled(serving, many, output))
    assert serving.ended(serving.start("curate_text/ad-hoc", small(many, output, build=False)))["type"] == "COMPLETED"
    last = summaries(output)[-1]
    assert last["status"] == "done"
    assert [stage["name"] for stage in last["stages"]] == list(STAGES)
    for stage in last["stages"]:
        before = made.get(stage["name"], 0)
        assert (stage["shards_before"], stage["shards_made"]) == (before, SHARDS - before)


@pytest.mark.slow
def test_a_cancelled_run_frees_its_ray(serving: Serving, many: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run = serving.start("curate_text/ad-hoc", small(many, output, build=False, executor="ray"))
    until(lambda: len(list(output.glob("language/**/*.parquet"))) >= 5, 180)
    processes = [below for pid in serving.engines("winnow-cpu") for below in [pid, *descendants(pid)]]
    assert len(processes) > 3  # Ray's own, and a worker
    serving.cancel(run)
    assert serving.ended(run)["type"] == "CANCELLED"
    until(lambda: not any(alive(pid) for pid in processes), 60)
    [summary] = summaries(output)
    assert summary["status"] == "bounded" and not summary["stages"][0]["failures"]


def shards_made(summary: dict[str, Any]) -> dict[str, int]:
    return {stage["name"]: stage["shards_made"] for stage in summary["stages"]}


def summaries(output: Path) -> list[dict[str, Any]]:
    held = [json.loads(file.read_text()) for file in (output / ".winnow" / "runs").glob("*.json")]
    return sorted(held, key=lambda one: str(one["run_id"]))


def test_the_second_run_on_gpus_waits_until_the_process_of_the_first_is_gone(serving: Serving, tmp_path: Path) -> None:
    """Also while the first drains: to the server's own count a cancelling run holds no place."""
    first = serving.start("nap/on-gpu", {"folder": str(tmp_path), "seconds": 100, "drain_seconds": 7})
    until((tmp_path / f"began-{first}").exists, 90)
    second = serving.start("nap/on-gpu", {"folder": str(tmp_path)})
    time.sleep(4)  # the worker looks every three seconds
    assert serving.state(second)["type"] == "SCHEDULED"
    serving.cancel(first)
    ended = tmp_path / f"ended-{first}"
    while not ended.exists():
        assert serving.state(second)["type"] == "SCHEDULED" or ended.exists()
        assert serving.state(first)["type"] == "CANCELLING" or ended.exists()
        time.sleep(0.2)
    assert serving.ended(first)["type"] == "CANCELLED"
    assert serving.ended(second)["type"] == "COMPLETED"
    assert float((tmp_path / f"began-{second}").read_text()) > float(ended.read_text())


@pytest.mark.parametrize(
    ("other_port", "other_home", "told"),
    [(False, True, "already in use; end what listens there"), (True, False, "another winnow serve works there")],
)
def test_a_second_serve_on_the_same_port_or_home_is_refused(
    serving: Serving, tmp_path: Path, other_port: bool, other_home: bool, told: str
) -> None:
    home = tmp_path / "home" if other_home else serving.home
    words = [WINNOW, "serve", "--port", str(free_port() if other_port else serving.port)]
    environment = {**os.environ, "PREFECT_HOME": str(home)}
    second = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert second.returncode == 2 and second.stdout == ""
    assert told in second.stderr and len(second.stderr.splitlines()) == 1, second.stderr
    assert serving.get("/health") is True


def test_what_was_set_in_the_ui_outlives_the_next_start(serving: Serving) -> None:
    nightly = serving.deployment("curate_text/nightly")
    parameters = {"parameters": {"input": "s3://lake/web", "output": "s3://lake/corpus", "seed": 7}}
    path, schedule = f"/deployments/{nightly['id']}", nightly["schedules"][0]["id"]
    assert serving.api.patch(path, json={"parameters": parameters, "description": "old"}).is_success
    assert serving.api.patch(f"{path}/schedules/{schedule}", json={"active": True}).is_success
    with SyncPrefectClient(f"{serving.url}/api") as client:
        assert register(client, read(SHIPPED)).trouble == []
    after = serving.deployment("curate_text/nightly")
    assert after["parameters"] == parameters and after["schedules"][0]["active"] and not after["paused"]
    assert "build" in after["description"]  # what belongs to the code is the code's
    assert serving.api.patch(f"{path}/schedules/{schedule}", json={"active": False}).is_success


def test_a_schedule_fires_without_a_person(serving: Serving, naps: Path) -> None:
    until(lambda: list(naps.glob("ended-*")), 150)
    run = next(naps.glob("ended-*")).name.removeprefix("ended-")
    assert serving.ended(run)["type"] == "COMPLETED"
    assert serving.get(f"/flow_runs/{run}")["auto_scheduled"] is True
    nightly = serving.deployment("curate_text/nightly")["id"]  # shipped paused, and it stayed so
    began = {"state": {"type": {"any_": ["PENDING", "RUNNING", "COMPLETED", "FAILED", "CRASHED"]}}}
    assert serving.runs(deployments={"id": {"any_": [nightly]}}, flow_runs=began) == []
