"""Ray's own kinds, as far as infra/ uses them: no package ships KubeRay's schemas, so this is their API reference
(ray.io/v1, KubeRay 1.6) written down by hand. What is not here is refused, so a misspelt key fails.

Pods inside are checked by Kubernetes' own schema, not here.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(_Strict):
    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?$")
    labels: dict[str, str] = {}


class AuthOptions(_Strict):
    mode: Literal["disabled", "token"]
    secretName: str = ""


class AutoscalerOptions(_Strict):
    version: Literal["v1", "v2"] = "v1"
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] = "Default"
    idleTimeoutSeconds: int = Field(60, ge=0)
    securityContext: dict[str, Any] = {}
    resources: dict[str, dict[str, str]] = {}


class HeadGroup(_Strict):
    rayStartParams: dict[str, str] = {}
    template: dict[str, Any]


class WorkerGroup(_Strict):
    groupName: str
    replicas: int = Field(0, ge=0)
    minReplicas: int = Field(ge=0)
    maxReplicas: int = Field(ge=1)
    rayStartParams: dict[str, str] = {}
    template: dict[str, Any]


class RayClusterSpec(_Strict):
    rayVersion: str
    authOptions: AuthOptions
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: AutoscalerOptions | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]

    def templates(self) -> list[dict[str, Any]]:
        return [self.headGroupSpec.template, *(one.template for one in self.workerGroupSpecs)]


class RayCluster(_Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: RayClusterSpec


class RayJobSpec(_Strict):
    entrypoint: str
    runtimeEnvYAML: str = ""
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] = "K8sJobMode"
    backoffLimit: int = Field(0, ge=0)
    activeDeadlineSeconds: int = Field(ge=1)
    shutdownAfterJobFinishes: bool = False
    ttlSecondsAfterFinished: int = Field(0, ge=0)
    rayClusterSpec: RayClusterSpec


class RayJob(_Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec
