"""What a rephrase must pass before it counts as one. Every refusal has a :class:`Reason`, and is counted under it."""

from __future__ import annotations

import re
from collections import Counter
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from operators.language.engine import FinishReason

COPY_ORDER = 5
"""Words of an n-gram when a rephrase is compared with its source."""
LOOP_ORDER = 4
LOOP_LEAST_WORDS = 24


class Reason(StrEnum):
    TRUNCATED = "truncated"
    EMPTY = "empty"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    COPY = "copy"
    LOOP = "repetition_loop"
    NUMBERS = "numbers_lost"


class Gates(BaseModel):
    """Thresholds. Lengths are tokens of the rephrase over tokens of its source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    least_ratio: float = Field(0.3, ge=0)
    most_ratio: float = Field(2.0, gt=0)
    most_ratio_qa: float = Field(3.0, gt=0, description="Questions repeat what their answers say.")
    most_copied: float = Field(0.8, ge=0, le=1, description="Largest share of 5-grams found in the source.")
    most_repeated: float = Field(0.5, ge=0, le=1, description="Largest share of 4-grams that came before.")
    keep_truncated: bool = Field(False, description="Pass an output that was cut off at its token limit.")
    least_numbers: float | None = Field(None, ge=0, le=1, description="Share of the source's numbers kept; null: off.")


def judge(
    source: str, output: str, finish: FinishReason, ratio: float, gates: Gates, *, is_qa: bool = False
) -> Reason | None:
    """The first gate that refuses ``output``, its lead-in off, or None. ``ratio``: its tokens over its source's."""
    if finish is FinishReason.LENGTH and not gates.keep_truncated:
        return Reason.TRUNCATED
    if not re.search(r"\w", output):
        return Reason.EMPTY
    if repeated_share(output) > gates.most_repeated:
        return Reason.LOOP
    if ratio < gates.least_ratio:
        return Reason.TOO_SHORT
    if ratio > (gates.most_ratio_qa if is_qa else gates.most_ratio):
        return Reason.TOO_LONG
    if copied_share(source, output) > gates.most_copied:
        return Reason.COPY
    if gates.least_numbers is not None and numbers_kept(source, output) < gates.least_numbers:
        return Reason.NUMBERS
    return None


def copied_share(source: str, output: str) -> float:
    """Share of the output's word 5-grams that stand in the source too (all of its words where it has fewer than 5)."""
    theirs, ours = _words(source), _words(output)
    order = min(COPY_ORDER, len(ours))
    if not order:
        return 0.0
    known = set(_ngrams(theirs, order))
    grams = _ngrams(ours, order)
    return sum(gram in known for gram in grams) / len(grams)


def repeated_share(output: str) -> float:
    """Share of word 4-grams that are not the first of their kind; 0 below 24 words, where a refrain is no loop."""
    words = _words(output)
    if len(words) < LOOP_LEAST_WORDS:
        return 0.0
    grams = _ngrams(words, LOOP_ORDER)
    return 1 - len(set(grams)) / len(grams)


def numbers_kept(source: str, output: str) -> float:
    """Share of the source's numbers that the output has, as often; 1 if it has none. 1,000 is 1000."""
    theirs, ours = Counter(_numbers(source)), Counter(_numbers(output))
    total = theirs.total()
    return (theirs & ours).total() / total if total else 1.0


def _words(text: str) -> list[str]:
    """Lower-cased runs of letters and digits; single characters in scripts that put no spaces between words."""
    return re.findall(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]|[^\W_]+", text.lower())


def _ngrams(words: list[str], order: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(order)), strict=False))


def _numbers(text: str) -> list[str]:
    return [number.replace(",", "") for number in re.findall(r"\d+(?:[.,]\d+)*", text)]


def strip_lead_in(output: str) -> str:
    """``output`` without an assistant's lead-in ("Sure, here is a simpler version:") and without outer white space.

    WRAP drops such sentences by heuristics. One is taken off only if it opens the output and speaks of the rewriting;
    quotation marks or asterisks around all of the rest go with it.
    """
    text = output.strip()
    match = _LEAD_IN.match(text)
    if not match or not match.end():
        return text
    rest = text[match.end() :].strip()
    for mark in ('""', "“”", "**"):
        if len(rest) > 1 and rest[0] == mark[0] and rest[-1] == mark[1] and rest.count(mark[0]) <= 2:
            rest = rest[1:-1].strip()
    return rest


_MAKING = (
    r"(?:re-?phras|para-?phras|re-?writ|re-?wrote|re-?word|re-?stat|re-?formulat|re-?tell|re-?told|simplif|condens)\w*"
)
_MADE = (
    rf"(?:{_MAKING}|simpler|simple|easier|easy|improved|revised|new|clear|clearer|scholarly|terse|encyclop\w+|"
    r"wikipedia\S*)"
)
_THING = (
    r"(?:version|explanation|summary|text|passage|paragraph|piece|conversation|dialogue|q\s?&\s?a|rendition|rendering|"
    r"style|way)"
)
_LEAD_IN = re.compile(
    rf"""
    [*\#\s"“]*
    (?:                                                        # an assent, with what may follow it
        (?: (?:sure|certainly|of\ course|absolutely|definitely|gladly|okay|ok|alright|all\ right|no\ problem|great)
            (?:\ thing)?
          | i(?:['’]d|\ would|['’]m|\ am)\ (?:be\ )?(?:happy|glad|delighted)\ to\ (?:help|do|assist)[^\n.!:]{{0,40}} )
        (?: \s*[!,.:;—–-]+\s* | \s+(?=here|below|i\b) )
    )?
    (?:
        (?: (?:(?:so|well|now),?\ )?(?:here|below|this|the\ following)\b[^\n:.]{{0,140}}?    # "Here is ... version"
            \b(?: {_MAKING}
               | {_MADE}\ [^\n:.]{{0,60}}?{_THING}
               | (?:version|conversation|dialogue|q\s?&\s?a|questions?\ and\ answers?)
               | (?:your|the)\ (?:text|passage|paragraph)\b[^\n:.]{{0,60}}?\b(?:in|for|as|using|with) )
            \b[^\n:.]{{0,140}}
          | (?:i(?:['’]ve|['’]ll|\ have|\ will|\ can)?|let(?:['’]s|\ me)|allow\ me\ to)\ (?:just\ |now\ |try\ to\ )?
            (?: {_MAKING} | turn(?:ed)?\ (?:the|this|your)
               | break\ (?:it|this)\ down | put\ (?:it|this) | explain\ (?:it|this) )
            [^\n:.]{{0,140}}
          | (?:the\ |my\ |a\ )?{_MADE}\ {_THING}[^\n:.]{{0,40}}                     # a bare label
          | (?:the\ |my\ |a\ )?(?:paraphrase|rephrase|rewrite)\w?(?:\ {_THING})?
        )
        \s*\**\s* (?: : \**\s* | \.\s*\n\s* | \n\s* )
      | (?<=[!.:])\s*(?=\S)                                    # the assent alone
    )
    """,
    re.IGNORECASE | re.VERBOSE,
)
