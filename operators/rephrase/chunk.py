"""Cuts a document into pieces of at most so many tokens, at sentence ends wherever there are any.

WRAP rephrases pieces of at most 300 tokens, since a rephraser loses information on longer ones (arXiv:2401.16380).
Nothing is lost here: the pieces in order are the text, but for white space between them.

Encoding is what costs, so a word is encoded once and its token count remembered. The counts add up to that of the whole
text under every tokenizer that splits at white space before it merges (byte-level BPE does, SentencePiece mostly
does not), which is tried out when a :class:`TokenCounter` is made; otherwise each piece is counted as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

PIECE_TOKENS = 300
"""Most tokens of a piece (WRAP, section 3)."""

LEAST_BUDGET = 16
"""Below this one character of many bytes might not fit into a piece."""

_STOPS = "。！？｡︒।॥؟"  # stops of scripts that may put no space after them
_CLOSERS = r"\"'”’»)\]」』）"
_UNIT = re.compile(rf"\s*(?:[^\s{_STOPS}]+[{_STOPS}]*|[{_STOPS}]+)[{_CLOSERS}]*|\s+")
_SENTENCE_END = re.compile(rf"[.!?…{_STOPS}]+[{_CLOSERS}]*|\n")
_NOT_ADDITIVE = re.compile(rf"[{_STOPS}\x1c-\x1f]")
"""Cuts that no white space marks, and what Python alone takes for white space: there the counts need not add up."""

_LONG_UNIT = 64  # characters; longer units are not remembered, they hardly come twice
_REMEMBERED = 1 << 18
_PROBE = (
    "A short  text, with two spaces; don't (ever) trust 3.14 or 1,000,000 of them!\n\n\tTabs — dashes… und Größe, "
    "ещё слова, 日本語の文 안녕 하세요, e-mail@example.org </tag> `x += 1` \u2003wide 👩‍👩‍👧 end"
)

Integers = npt.NDArray[np.int64]


class Piece(NamedTuple):
    """``text[start:end]``, which begins and ends without white space, and its ``tokens`` when encoded alone."""

    start: int
    end: int
    tokens: int


class TokenCounter:
    """Counts tokens under a ``tokenizers.Tokenizer``, without special tokens. Not thread-safe."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, int] = {}
        added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        together = sum(self.units(_UNIT.findall(_PROBE))) == self.encoded(_PROBE)
        self.additive = together and _splits_at_spaces(tokenizer) and not any(re.search(r"\s", one) for one in added)

    def encoded(self, text: str) -> int:
        return len(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0])

    def units(self, units: list[str]) -> list[int]:
        """Tokens of each word with the white space before it."""
        known = self._known
        counts = list(map(known.get, units))
        if None not in counts:
            return counts  # type: ignore[return-value]
        if len(known) > _REMEMBERED:
            known.clear()
        missing = list({unit for unit in units if unit not in known})
        encoded = self._tokenizer.encode_batch_fast(missing, add_special_tokens=False)
        fresh = {unit: len(one) for unit, one in zip(missing, encoded, strict=True)}
        known.update((unit, count) for unit, count in fresh.items() if len(unit) <= _LONG_UNIT)
        return [fresh[unit] if unit in fresh else known[unit] for unit in units]


def _splits_at_spaces(tokenizer: Any) -> bool:
    """Whether nothing that the tokenizer merges runs from a word into the white space after it."""
    text = tokenizer.normalizer.normalize_str(_PROBE) if tokenizer.normalizer else _PROBE
    if tokenizer.pre_tokenizer is None:
        return False
    spans = [span for _, span in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    return not any(re.search(r"[^\s▁][\s▁]", text[start:end]) for start, end in spans)


def pieces(text: str, counter: TokenCounter, budget: int = PIECE_TOKENS) -> list[Piece]:
    """Pieces of at most ``budget`` tokens each, in order; none for a text of white space.

    A piece ends at a sentence end unless one sentence alone is longer; that one is cut between words, and a word
    that is longer still between characters. Raises ValueError for a budget below 16.
    """
    if budget < LEAST_BUDGET:
        raise ValueError(f"a piece of {budget} tokens is too small; allow at least {LEAST_BUDGET}")
    text = text.rstrip()
    units = _UNIT.findall(text)
    if not units:
        return []
    ends = np.cumsum(np.fromiter(map(len, units), np.int64, len(units)))
    tokens = np.concatenate([[0], np.cumsum(counter.units(units), dtype=np.int64)])
    sums = counter.additive and not _NOT_ADDITIVE.search(text)
    return list(_Cutter(text, counter, budget, units, ends, tokens, _sentence_ends(text, ends), sums).pieces())


def _sentence_ends(text: str, ends: Integers) -> Integers:
    """Numbers of units up to each sentence end, ascending, the last of the text included.

    A stop counts where a unit ends with it (so not inside 3.14), a line break always: headings, lists, verse.
    """
    found = [(match.end(), match[0] == "\n") for match in _SENTENCE_END.finditer(text)]
    if not found:
        return np.array([len(ends)])
    stops = np.array([stop for stop, _ in found])
    is_break = np.array([line for _, line in found])
    # the unit whose last character is the one before the stop, or that the line break stands in, before its word
    unit = np.searchsorted(ends, stops, side="left")
    at_end = (ends[np.minimum(unit, len(ends) - 1)] == stops) & ~is_break
    after = np.where(is_break, unit, unit + 1)
    chosen = after[at_end | is_break]
    return np.unique(np.concatenate([chosen[chosen > 0], [len(ends)]]))


@dataclass(frozen=True)
class _Cutter:
    """``units``: words with the white space before them; ``ends``: their last character's place plus one, int64 [n];
    ``tokens``: tokens before each unit, int64 [n + 1]; ``sums``: whether they add up to those of any run of units."""

    text: str
    counter: TokenCounter
    budget: int
    units: list[str]
    ends: Integers
    tokens: Integers
    sentence_ends: Integers
    sums: bool

    def pieces(self) -> Iterator[Piece]:
        at = 0
        while at < len(self.units):
            spare = 0
            while (stop := self._reach(at, self.budget - spare)) > at:
                piece = self._piece(at, stop)
                if piece.tokens <= self.budget:
                    yield piece
                    break
                spare += max(1, piece.tokens - self.budget)
            else:
                yield from self._characters(at)
                stop = at + 1
            at = stop

    def _reach(self, at: int, budget: int) -> int:
        """The last sentence end that the budget reaches from unit ``at``, else the last unit, else ``at``."""
        last = int(np.searchsorted(self.tokens, self.tokens[at] + budget, side="right")) - 1
        place = int(np.searchsorted(self.sentence_ends, last, side="right")) - 1
        sentence_end = int(self.sentence_ends[place]) if place >= 0 else 0
        return sentence_end if sentence_end > at else max(last, at)

    def _piece(self, at: int, stop: int) -> Piece:
        unit = self.units[at]
        bare = unit.lstrip()
        start, end = int(self.ends[at]) - len(bare), int(self.ends[stop - 1])
        if not self.sums:
            return Piece(start, end, self.counter.encoded(self.text[start:end]))
        tokens = int(self.tokens[stop] - self.tokens[at])
        if len(bare) < len(unit):  # without the space before it a word can be other tokens
            tokens += self.counter.units([bare])[0] - int(self.tokens[at + 1] - self.tokens[at])
        return Piece(start, end, tokens)

    def _characters(self, at: int) -> Iterator[Piece]:
        """Parts of one overlong word, each as long as fits, found by shrinking."""
        end = int(self.ends[at])
        start = end - len(self.units[at].lstrip())
        while start < end:
            size = min(4 * self.budget, end - start)
            while (tokens := self.counter.encoded(self.text[start : start + size])) > self.budget and size > 1:
                size = max(1, min(size - 1, size * self.budget // tokens))
            yield Piece(start, start + size, tokens)
            start += size
