"""Values for charts of others. The charts are not here: what can be held is that the files speak of the same things."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
HELM = ROOT / "infra" / "helm"


def values(chart: str) -> dict[str, Any]:
    return dict(yaml.safe_load((HELM / f"{chart}.yaml").read_text()))


def test_server_and_worker_run_winnow_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    server, worker = values("prefect-server")["global"]["prefect"]["image"], values("prefect-worker")["worker"]["image"]
    for image in (server, worker):
        assert (image["repository"], str(image["prefectTag"])) == ("winnow", version)


def test_the_worker_takes_from_the_pool_of_the_deployments() -> None:
    pools = {
        one["work_pool"]["name"]
        for one in yaml.safe_load((ROOT / "deployments/prefect.yaml").read_text())["deployments"]
    }
    assert values("prefect-worker")["worker"]["config"]["workPool"] in pools


def test_secrets_are_named_and_never_written_in() -> None:
    worker = values("prefect-worker")["worker"]
    (token,) = [one for one in worker["extraEnvVars"] if one["name"] == "RAY_AUTH_TOKEN"]
    named = token["valueFrom"]["secretKeyRef"]["name"]
    cluster = next(yaml.safe_load_all((ROOT / "infra/kuberay/raycluster.yaml").read_text()))
    assert named == cluster["spec"]["authOptions"]["secretName"]
    store = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["envFrom"][0]["secretRef"]["name"]
    assert worker["extraEnvVarsSecret"] == store
    assert values("prefect-server")["secret"]["create"] is False
