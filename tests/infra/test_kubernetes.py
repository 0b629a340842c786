"""The manifests against Kubernetes' own schemas (package kubernetes-validate), Ray's kinds against kuberay.py."""

from __future__ import annotations

import copy
import importlib.util
import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError
from referencing import Registry, Resource

from flows.options import validated
from flows.parameters import CurateText
from tests.infra.kuberay import RayCluster, RayClusterSpec, RayJob

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = sorted((ROOT / "infra" / "kuberay").glob("*.yaml"))
KINDS = {
    "ConfigMap": "configmap-v1",
    "NetworkPolicy": "networkpolicy-networking-v1",
    "PodDisruptionBudget": "poddisruptionbudget-policy-v1",
    "PodTemplate": "podtemplatespec-v1",
}


def schemas() -> Path:
    found = importlib.util.find_spec("kubernetes_validate")
    if found is None or found.origin is None:
        pytest.skip("kubernetes-validate is not installed: run make install-dev")
    return Path(found.origin).parent / "kubernetes-json-schema" / "v1.37.0-local-strict"


def complaints(kind: str, held: dict[str, Any]) -> list[str]:
    shared = Resource.from_contents(json.loads((schemas() / "_definitions.json").read_text()))
    registry = Registry().with_resource("/api/_definitions.json", shared)
    schema = json.loads((schemas() / f"{KINDS[kind]}.json").read_text())
    validator = jsonschema.Draft202012Validator(schema, registry=registry)
    return [f"{'/'.join(map(str, one.path))}: {one.message}" for one in validator.iter_errors(held)]


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def ray_specs() -> list[RayClusterSpec]:
    found = []
    for one in (held for path in MANIFESTS for held in documents(path)):
        if one["kind"] == "RayCluster":
            found.append(RayCluster.model_validate(one).spec)
        elif one["kind"] == "RayJob":
            found.append(RayJob.model_validate(one).spec.rayClusterSpec)
    return found


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_manifest_is_what_its_schema_says(path: Path) -> None:
    for one in documents(path):
        if one["kind"] == "RayCluster":
            RayCluster.model_validate(one)
        elif one["kind"] == "RayJob":
            RayJob.model_validate(one)
        else:
            assert complaints(one["kind"], one) == []


def test_every_pod_is_one_that_kubernetes_takes() -> None:
    templates = [template for spec in ray_specs() for template in spec.templates()]
    assert len(templates) == 5
    assert [complaints("PodTemplate", one) for one in templates] == [[]] * 5


def test_the_check_sees_what_is_wrong() -> None:
    template = ray_specs()[0].headGroupSpec.template
    misspelt, wrong = copy.deepcopy(template), copy.deepcopy(template)
    misspelt["spec"]["terminationGracePeriod"] = 240
    wrong["spec"]["containers"][0]["ports"][0]["containerPort"] = "6379"
    assert "terminationGracePeriod" in complaints("PodTemplate", misspelt)[0]
    assert "6379" in complaints("PodTemplate", wrong)[0]
    cluster = next(one for path in MANIFESTS for one in documents(path) if one["kind"] == "RayCluster")
    cluster["spec"]["workerGroupSpecs"][0]["minReplica"] = 0
    with pytest.raises(ValidationError, match="minReplica"):
        RayCluster.model_validate(cluster)


def test_pods_are_not_root_drain_and_hold_one_image() -> None:
    for spec in ray_specs():
        assert spec.authOptions.mode == "token" and spec.headGroupSpec.rayStartParams["num-cpus"] == "0"
        pods = [template["spec"] for template in spec.templates()]
        assert all(pod["securityContext"]["runAsNonRoot"] for pod in pods)
        assert all(pod["terminationGracePeriodSeconds"] >= 120 for pod in pods)
        containers = [one for pod in pods for one in pod["containers"]]
        assert len({one["image"] for one in containers}) == 1, "winnow refuses nodes that differ"
        assert not any(one["securityContext"]["allowPrivilegeEscalation"] for one in containers)
        assert all("limits" in one["resources"] and "requests" in one["resources"] for one in containers)


def test_a_pod_that_is_to_end_is_announced_to_the_run_for_most_of_its_grace() -> None:
    """Ray gives 30 s by itself, and Kubernetes kills at the end of the grace."""
    for pod in [one.template["spec"] for spec in ray_specs() for one in spec.workerGroupSpecs]:
        environment = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
        notice = float(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert 90 <= notice <= pod["terminationGracePeriodSeconds"] - 15


def test_gpu_nodes_come_only_when_a_run_asks_for_them() -> None:
    groups = [one for spec in ray_specs() for one in spec.workerGroupSpecs if one.groupName == "gpu"]
    assert groups and all((one.minReplicas, one.replicas) == (0, 0) for one in groups)
    assert all("nvidia.com/gpu" in one.template["spec"]["containers"][0]["resources"]["limits"] for one in groups)


def test_versions_are_those_of_the_lock_and_of_the_project() -> None:
    ray = next(line for line in (ROOT / "requirements/cpu.lock").read_text().splitlines() if line.startswith("ray=="))
    assert {spec.rayVersion for spec in ray_specs()} == {ray.removeprefix("ray==")}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {one["image"] for spec in ray_specs() for t in spec.templates() for one in t["spec"]["containers"]}
    assert images == {f"winnow:{version}", f"winnow:{version}-gpu"}


def test_the_run_of_the_config_map_is_one_that_winnow_takes() -> None:
    config, job = documents(ROOT / "infra/kuberay/rayjob.yaml")
    (name,) = config["data"]
    parameters = validated(CurateText, yaml.safe_load(config["data"][name]))
    assert (parameters.executor, parameters.ray_address) == ("ray", "auto")
    head = RayJob.model_validate(job).spec.rayClusterSpec.headGroupSpec.template["spec"]
    mounted = {one["name"]: one["mountPath"] for one in head["containers"][0]["volumeMounts"]}
    assert f"--config {mounted['run']}/{name} " in job["spec"]["entrypoint"]
    assert {"name": "run", "configMap": {"name": config["metadata"]["name"]}} in head["volumes"]
    assert int(yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 120
