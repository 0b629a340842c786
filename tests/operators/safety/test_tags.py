"""S3: rate, place, and giving back what was there."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from operators.safety.tags import TAG, TAG_PROBABILITY, HarmTags, escaped, insert_tags, remove_tags

NAME = TAG[1:]


def test_the_rate_is_p_within_three_standard_errors() -> None:
    words = 200_000
    tagged = insert_tags("word " * words, 1, "doc")
    rate = tagged.count(TAG) / (words - 1)
    assert TAG_PROBABILITY == 0.05
    assert abs(rate - TAG_PROBABILITY) < 3 * math.sqrt(0.05 * 0.95 / words)


def test_a_tag_stands_before_every_word_but_the_first_where_p_is_one() -> None:
    assert insert_tags("  one two\n\nthree ", 0, "a", 1.0) == f"  one{TAG} two{TAG}\n\nthree "
    assert insert_tags("one", 0, "a", 1.0) == "one"
    assert insert_tags(" \n", 0, "a", 1.0) == " \n"


def test_no_tag_where_p_is_zero() -> None:
    assert insert_tags("one two three", 0, "a", 0.0) == "one two three"


PIECES = st.lists(
    st.one_of(st.text(max_size=8), st.sampled_from([TAG, NAME, "<", "\\", " ", "\n", "<\\", "|>"])), max_size=12
)


@given(PIECES.map("".join), st.integers(0, 9), st.sampled_from([0.0, 0.05, 0.5, 1.0]))
@example(f"a {TAG} b <\\{NAME} c <\\\\{NAME}", 0, 1.0)
def test_removing_tags_gives_the_text_back(text: str, seed: int, p: float) -> None:
    assert remove_tags(insert_tags(text, seed, "row", p)) == text


def test_a_text_cannot_bring_its_own_tag() -> None:
    assert TAG not in insert_tags(f"one {TAG} two {TAG}", 0, "row", 0.0)


def test_tags_are_drawn_from_seed_and_row() -> None:
    text = "word " * 500
    assert insert_tags(text, 1, "a") == insert_tags(text, 1, "a")
    assert len({insert_tags(text, 1, "a"), insert_tags(text, 2, "a"), insert_tags(text, 1, "b")}) == 3


def test_the_config_counts_what_it_inserts() -> None:
    tags = HarmTags(p=0.3, seed=4)
    tagged, added = tags.insert("word " * 200, "row")
    assert tagged == insert_tags("word " * 200, 4, "row", 0.3)
    assert added == tagged.count(TAG) > 0
    assert HarmTags().p == TAG_PROBABILITY


def test_p_is_a_probability() -> None:
    with pytest.raises(ValueError, match="no probability"):
        insert_tags("a b", 0, "row", 1.5)
    with pytest.raises(ValueError, match="less than or equal to 1"):
        HarmTags(p=1.5)


@pytest.mark.parametrize("text", ["plain", TAG, f"a {TAG} b {TAG[:-2]}", f"<\\{TAG[1:]}", f"<<{TAG}>>"])
def test_an_untagged_text_brings_no_tag_of_its_own(text: str) -> None:
    assert TAG not in escaped(text)
    assert remove_tags(escaped(text)) == text
