"""The four styles of WRAP, as versioned prompt files. The words of a prompt are part of a rewrite's identity."""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from importlib.resources import files

PLACEHOLDER = "{piece}"


class Style(StrEnum):
    """WRAP, section 3.1: for a small child, as Wikipedia would, tersely and scholarly, as questions and answers."""

    EASY = "easy"
    MEDIUM = "medium"
    HARD = "hard"
    QA = "qa"


PROMPT_FILES = {style: f"{style.value}.v1.md" for style in Style}


@cache
def template(style: Style) -> str:
    """The prompt of a style; ``{piece}`` stands once in it, where the text goes."""
    text = files("operators.rephrase").joinpath("prompts", PROMPT_FILES[style]).read_text("utf-8").strip()
    if text.count(PLACEHOLDER) != 1:
        raise ValueError(f"prompt {PROMPT_FILES[style]}: {PLACEHOLDER} must stand in it exactly once")
    return text


def prompt(style: Style, piece: str) -> str:
    before, after = template(style).split(PLACEHOLDER)
    return f"{before}{piece}{after}"
