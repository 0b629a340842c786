"""Harmfulness tags (Safety Pretraining, arXiv:2504.16980): a special token strewn over unsafe text.

For a text of words w1..wn the tag is put before each of w2..wn independently with probability p. A model that has
learned the tag predicts it where text turns unsafe, and decoding can steer away from it (SafeBeam).
"""

from __future__ import annotations

import hashlib
import re
from typing import ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

TAG = "<|potentially_unsafe_content|>"
"""The special token; a trainer adds this string to its tokenizer as one token."""

MARK = TAG[2:-2]
"""A text without it holds no tag and nothing like one."""

TAG_PROBABILITY = 0.05
"""p of the paper: 5 % was the best of 3, 5 and 10 %."""

_NAME = re.escape(TAG[1:])
_LIKE_A_TAG = re.compile(rf"<(\\*)(?={_NAME})")
_ESCAPED = re.compile(rf"<\\(?=\\*{_NAME})")
_WORD = re.compile(r"\S+")


class HarmTags(BaseModel):
    """How a build tags unsafe rows. ``p``: probability before each word but the first; ``seed``: the run's seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: ClassVar[str] = "1"

    p: float = Field(TAG_PROBABILITY, ge=0, le=1)
    seed: int = 0

    def insert(self, text: str, row_id: str) -> tuple[str, int]:
        """The tagged text and the number of tags in it, which is the number of tokens that it grew by."""
        return _insert(text, self.seed, row_id, self.p)


def insert_tags(text: str, seed: int, row_id: str, p: float = TAG_PROBABILITY) -> str:
    """``text`` with the tag before word i >= 2 with probability ``p``, drawn from (seed, row id).

    Words are runs of characters that are no white space, so a script written without spaces has few of them. The tag
    stands at the end of word i-1, before the white space: the tokens of word i, which mostly begin with that
    space, stay what they were. What looks like a tag in the text already is escaped with a backslash,
    so that no text can bring its own; ``remove_tags`` takes it off again.
    """
    return _insert(text, seed, row_id, p)[0]


def escaped(text: str) -> str:
    """``text`` in which nothing is a tag: an untagged row must not bring its own. ``remove_tags`` undoes it."""
    return _LIKE_A_TAG.sub(r"<\\\1", text) if MARK in text else text


def remove_tags(text: str) -> str:
    """Gives back what ``insert_tags`` was given, byte for byte."""
    return _ESCAPED.sub("<", text.replace(TAG, ""))


def _insert(text: str, seed: int, row_id: str, p: float) -> tuple[str, int]:
    if not 0 <= p <= 1:
        raise ValueError(f"tag probability {p} is no probability; give a number from 0 to 1")
    text = escaped(text)
    ends = [match.end() for match in _WORD.finditer(text)][:-1]
    if not ends:
        return text, 0
    chosen = np.flatnonzero(_draws(seed, row_id, len(ends)) < p * 2.0**32)
    parts, last = [], 0
    for place in chosen:
        parts.append(text[last : ends[place]])
        last = ends[place]
    return TAG.join([*parts, text[last:]]), len(chosen)


def _draws(seed: int, row_id: str, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """uint32 [count], one per word: SHAKE-128 of the length-prefixed seed and row id, the same on every machine."""
    state = hashlib.shake_128()
    for name in (str(seed), row_id):
        raw = name.encode("utf-8", "surrogatepass")
        state.update(len(raw).to_bytes(8, "little"))
        state.update(raw)
    return np.frombuffer(state.digest(4 * count), dtype="<u4").astype(np.uint32)
