"""Samples made ready for a page: bounded in size, grouped by kind, tags marked, harmful ones folded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from tasks.report.numbers import exact
from tasks.summary import RunSummary, Sample

MAX_SAMPLES = 12
"""Of each kind; the others are counted."""
TEXT_BYTES = 160_000
"""Of all sample texts together, as they stand in the page."""
_TAG = r"<\|[^|<>\s][^|<>]{0,60}\|>|\[potentially unsafe content\]"


@dataclass(frozen=True)
class Shown:
    """One sample as the page shows it. ``folded``: behind a content warning."""

    id: str
    label: str
    harm_score: int | None
    before: Markup
    after: Markup
    cut: str
    folded: bool


@dataclass(frozen=True)
class Kind:
    name: str
    left_out: int
    shown: tuple[Shown, ...]
    before_title: str
    after_title: str


def kinds(summary: RunSummary) -> list[Kind]:
    """Rephrased first, then tagged, dropped, and whatever other kinds there are."""
    groups: dict[str, list[Sample]] = {kind: [] for kind in ("rephrased", "tagged", "dropped")}
    for sample in summary.samples:
        groups.setdefault(sample.kind, []).append(sample)
    chosen = {kind: group[:MAX_SAMPLES] for kind, group in groups.items() if group}
    texts = max(1, sum(bool(s.before) + bool(s.after) for group in chosen.values() for s in group))
    limit = min(6000, TEXT_BYTES // texts)
    tags = _tag_pattern(summary.parameters)
    return [
        Kind(
            name=kind,
            left_out=len(groups[kind]) - len(group),
            shown=tuple(_shown(sample, limit, tags) for sample in group),
            before_title="Before" if any(s.after for s in group) else "Text",
            after_title="After",
        )
        for kind, group in chosen.items()
    ]


def is_folded(sample: Sample) -> bool:
    """Harmful texts, and those of which nobody knows that they are not: tagged or dropped without a score."""
    if sample.harm_score is None:
        return sample.kind != "rephrased"
    return sample.harm_score > 0 or sample.kind == "tagged"


def _shown(sample: Sample, limit: int, tags: re.Pattern[str]) -> Shown:
    before, cut_before = _cut(sample.before, limit, None)
    after, cut_after = _cut(sample.after, limit, tags)
    cut = "; ".join(
        f"{exact(count)} more characters {side}"
        for count, side in ((cut_before, "before"), (cut_after, "after"))
        if count
    )
    return Shown(
        sample.id[:120], sample.label[:120], sample.harm_score,
        _marked(before, None), _marked(after, tags), cut, is_folded(sample),
    )  # fmt: skip


def _cut(text: str, limit: int, tags: re.Pattern[str] | None) -> tuple[str, int]:
    """The longest beginning (to 64 characters) whose bytes in the page stay within ``limit``; characters left out."""
    size = 0
    for start in range(0, len(text), 64):
        size += len(_marked(text[start : start + 64], tags).encode("utf-8", "replace"))
        if size > limit:
            return text[:start].rstrip() + " …", len(text) - start
    return text, 0


def _marked(text: str, tags: re.Pattern[str] | None) -> Markup:
    if tags is None:
        return escape(text)
    parts: list[Markup] = []
    last = 0
    for found in tags.finditer(text):
        parts += [escape(text[last : found.start()]), Markup("<mark>{}</mark>").format(found.group())]
        last = found.end()
    return Markup("").join([*parts, escape(text[last:])])


def _tag_pattern(parameters: Mapping[str, Any]) -> re.Pattern[str]:
    """Tags as ``<|...|>``, and any text that a parameter named ``tag`` or ``..._tag`` gives."""
    given = sorted(set(_given_tags(parameters)), key=lambda tag: (-len(tag), tag))
    return re.compile("|".join([*map(re.escape, given), _TAG]))


def _given_tags(parameters: Mapping[str, Any]) -> Iterator[str]:
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _given_tags(value)
        elif isinstance(value, str) and len(value) >= 6 and (name == "tag" or name.endswith("_tag")):
            yield value
