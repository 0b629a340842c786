"""The pages of docs/reference are what the code says today."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", FOLDER / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = load()


@pytest.mark.parametrize("name", sorted(MAKE.PAGES))
def test_the_page_is_what_the_code_says(name: str) -> None:
    assert (FOLDER / name).read_text("utf-8") == MAKE.PAGES[name](), "run: make reference"


def test_no_page_is_left_over() -> None:
    assert {one.name for one in FOLDER.glob("*.md")} == set(MAKE.PAGES) | {"README.md"}


def test_a_changed_default_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    field = MAKE.CurateText.model_fields["seed"]
    before = MAKE.parameters()
    monkeypatch.setattr(field, "default", 7)
    assert MAKE.parameters() != before
