from __future__ import annotations

from operators.rephrase.styles import PLACEHOLDER, PROMPT_FILES, Style, prompt, template


def test_every_style_has_a_prompt_of_its_own() -> None:
    assert [style.value for style in Style] == ["easy", "medium", "hard", "qa"]
    assert len({template(style) for style in Style}) == 4
    assert all(PROMPT_FILES[style].startswith(style.value) for style in Style)


def test_a_piece_stands_in_the_prompt_as_it_is() -> None:
    piece = f"Braces {{and}} {PLACEHOLDER} and {{0}}\nlines"
    for style in Style:
        before, after = template(style).split(PLACEHOLDER)
        assert prompt(style, piece) == before + piece + after
