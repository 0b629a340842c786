"""compose.yaml against the schema of the Compose specification, as the package docker-compose ships it."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "infra" / "compose.yaml"


@pytest.fixture(scope="module")
def held() -> dict[str, Any]:
    return dict(yaml.safe_load(COMPOSE.read_text()))


def complaints(held: dict[str, Any]) -> list[str]:
    found = importlib.util.find_spec("compose")
    if found is None or found.origin is None:
        pytest.skip("docker-compose is not installed: run make install-dev")
    schema = json.loads((Path(found.origin).parent / "config" / "compose_spec.json").read_text())
    return [
        f"{'/'.join(map(str, one.path))}: {one.message}" for one in jsonschema.Draft7Validator(schema).iter_errors(held)
    ]


def test_it_is_what_the_specification_says(held: dict[str, Any]) -> None:
    assert complaints(held) == []


def test_the_check_sees_what_is_wrong(held: dict[str, Any]) -> None:
    wrong = copy.deepcopy(held)
    wrong["services"]["s3"]["imagee"] = "x"
    wrong["services"]["prefect"]["healthcheck"]["retries"] = "many"
    assert len(complaints(wrong)) == 2


def test_nothing_is_open_beyond_loopback_and_no_secret_is_written_in(held: dict[str, Any]) -> None:
    ports = [port for one in held["services"].values() for port in one.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
    secret = re.compile(r"(PASSWORD|TOKEN|SECRET|ACCESS_KEY)(?!_)")
    for one in held["services"].values():
        for name, value in one.get("environment", {}).items():
            assert not secret.search(name) or value.startswith("${"), f"{name} is written in"


def test_images_are_pinned_and_what_is_depended_on_says_when_it_is_up(held: dict[str, Any]) -> None:
    services = held["services"]
    assert all(re.search(r":v?\d+\.\d+", one["image"]) for one in services.values())
    for one in services.values():
        wanted = one.get("depends_on", {})
        for name, how in wanted.items() if isinstance(wanted, dict) else [(name, {}) for name in wanted]:
            assert name in services
            assert how.get("condition") != "service_healthy" or "healthcheck" in services[name]


def test_what_is_mounted_from_the_repository_is_there(held: dict[str, Any]) -> None:
    mounts = [one for service in held["services"].values() for one in service.get("volumes", [])]
    sources = [mount.partition(":")[0] for mount in mounts]
    assert all((COMPOSE.parent / one).exists() if one.startswith(".") else one in held["volumes"] for one in sources)
    scraped = yaml.safe_load((COMPOSE.parent / "prometheus/compose.yaml").read_text())["scrape_configs"]
    hosts = {target.partition(":")[0] for job in scraped for one in job["static_configs"] for target in one["targets"]}
    assert hosts <= held["services"].keys()
