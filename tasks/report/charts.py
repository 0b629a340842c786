"""Charts of counts by bin, as SVG that takes its colours from the page: bars for a few named bins, columns for many.

Drawn here and not by a plotting library, so that one picture serves light, dark and print and a page stays small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from tasks.report.numbers import exact, share, short, tick
from tasks.summary import Histogram

WIDTH = 440
MAX_BARS = 16
MAX_COLUMNS = 48
SKEWED = 200
"""Above this ratio of the largest to the smallest count that is not zero, the axis is logarithmic."""
_CHARACTER = 7.6
"""Width of a character in pixels at the charts' text size, a little too large on purpose."""


def is_skewed(counts: Sequence[int]) -> bool:
    some = [count for count in counts if count > 0]
    return bool(some) and max(some) / min(some) > SKEWED


def chart(histogram: Histogram, name: str, log: bool | None = None) -> Markup:
    """One histogram as ``<svg>``. ``name``: unique in the page. ``log``: None decides it by the counts."""
    pairs = list(zip(histogram.bins, histogram.counts, strict=False))
    if not any(count > 0 for _, count in pairs):
        return Markup('<p class="nothing">Nothing was counted.</p>')
    ordered = len(pairs) > 8 and sum(_numeric(label) for label, _ in pairs) > len(pairs) / 2
    log = is_skewed(histogram.counts) if log is None else log
    draw = _columns if ordered else _bars
    body, height, said = draw(_merged(pairs) if ordered else _with_rest(pairs), log, "harm" in histogram.title.lower())
    unit = histogram.unit + (" (log axis)" if log else "")
    total = sum(histogram.counts)
    words = "; ".join(f"{label}: {exact(count)} ({share(count, total)})" for label, count in said)
    return Markup(
        '<svg class="chart" viewBox="0 0 {0} {1}" role="img" aria-labelledby="{2}-t {2}-d"><title id="{2}-t">{3}, {4}'
        '</title><desc id="{2}-d">{5}</desc>{6}</svg>'
    ).format(WIDTH, height, name, histogram.title, unit, words, body)


def _numeric(label: str) -> bool:
    return any(character.isdigit() for character in label)


def _with_rest(pairs: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    if len(pairs) <= MAX_BARS:
        return list(pairs)
    rest = pairs[MAX_BARS - 1 :]
    return [*pairs[: MAX_BARS - 1], (f"{len(rest)} others", sum(count for _, count in rest))]


def _merged(pairs: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Neighbours put together until at most MAX_COLUMNS bins are left."""
    step = math.ceil(len(pairs) / MAX_COLUMNS)
    groups = [pairs[i : i + step] for i in range(0, len(pairs), step)]
    return [(g[0][0] if len(g) == 1 else f"{g[0][0]} to {g[-1][0]}", sum(count for _, count in g)) for g in groups]


class _Axis:
    """Maps a count to 0..1. A log axis starts half a decade below the smallest count's decade, so that it shows."""

    def __init__(self, counts: Sequence[int], log: bool) -> None:
        self.log = log
        self.largest = max(counts)
        smallest = min(count for count in counts if count > 0)
        self.low = math.floor(math.log10(smallest)) - 0.5 if log else 0.0

    def at(self, count: float) -> float:
        if count <= 0:
            return 0.0
        if not self.log:
            return count / self.largest
        return (math.log10(count) - self.low) / (math.log10(self.largest) - self.low)

    def ticks(self) -> list[float]:
        if self.log:
            decades = range(math.ceil(self.low), math.floor(math.log10(self.largest)) + 1)
            return [10.0**d for d in decades[:: math.ceil(len(decades) / 5)]]
        step = 10.0 ** math.floor(math.log10(self.largest / 2)) if self.largest > 2 else 1.0
        step *= next(m for m in (1, 2, 5, 10) if self.largest / (step * m) <= 4.5)
        return [step * i for i in range(int(self.largest / step) + 1)]


_Drawn = tuple[Markup, int, Sequence[tuple[str, int]]]


def _bars(pairs: Sequence[tuple[str, int]], log: bool, harm: bool) -> _Drawn:
    """One row a bin: label, bar, count."""
    axis, total = _Axis([count for _, count in pairs], log), sum(count for _, count in pairs)
    labels = [label if len(label) <= 22 else label[:21] + "…" for label, _ in pairs]
    left = max(24, round(max(len(label) for label in labels) * _CHARACTER) + 10)
    room, row, top = WIDTH - left - 112, 22, 4
    bottom = top + row * len(pairs)
    parts = [_grid(left + axis.at(t) * room, top, bottom, t) for t in axis.ticks()] if log else []
    for i, ((full, count), label) in enumerate(zip(pairs, labels, strict=True)):
        y, length = top + i * row, axis.at(count) * room
        tone = f"t-harm{min(i, 5)}" if harm else "t-bin"
        parts.append(
            Markup(
                '<text class="label" x="{}" y="{}" text-anchor="end">{}</text>'
                '<rect class="{}" x="{}" y="{}" width="{:.1f}" height="14" rx="1.5"><title>{}: {}</title></rect>'
                '<text class="value" x="{:.1f}" y="{}">{}<tspan class="dim" dx="6">{}</tspan></text>'
            ).format(
                left - 8, y + 15, label, tone, left, y + 4, max(length, 1.5 if count else 0), full, exact(count),
                left + length + 6, y + 15, short(count), share(count, total),
            )
        )  # fmt: skip
    parts.append(Markup('<path class="axis" d="M{0} {1}V{2}"/>').format(left, top, bottom))
    return Markup("").join(parts), bottom + (20 if log else 6), pairs


def _grid(x: float, top: int, bottom: int, count: float) -> Markup:
    return Markup(
        '<path class="grid" d="M{0:.1f} {1}V{2}"/>'
        '<text class="tick" x="{0:.1f}" y="{3}" text-anchor="middle">{4}</text>'
    ).format(x, top, bottom, bottom + 14, tick(count))


def _columns(pairs: Sequence[tuple[str, int]], log: bool, harm: bool) -> _Drawn:
    """One column a bin, side by side, for bins that are an order."""
    axis = _Axis([count for _, count in pairs], log)
    left, top, room, bottom = 46, 8, WIDTH - 54, 158
    step = room / len(pairs)
    parts: list[Markup] = []
    for count in axis.ticks():
        y = bottom - axis.at(count) * (bottom - top)
        parts.append(
            Markup(
                '<path class="grid" d="M{} {:.1f}H{}"/><text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>'
            ).format(left, y, left + room, left - 6, y + 4, tick(count))
        )
    longest = max(len(label) for label, _ in pairs)
    every = math.ceil(len(pairs) / max(1, int(room / (longest * _CHARACTER + 10))))
    for i, (label, count) in enumerate(pairs):
        height = max(axis.at(count) * (bottom - top), 1.5 if count else 0)
        tone = f"t-harm{min(i, 5)}" if harm else "t-bin"
        parts.append(
            Markup(
                '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}: {}</title></rect>'
            ).format(tone, left + i * step + 0.5, bottom - height, max(step - 1, 1), height, label, exact(count))
        )
        if i % every == 0:
            parts.append(
                Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                    left + (i + 0.5) * step, bottom + 16, label
                )
            )
    parts.append(Markup('<path class="axis" d="M{} {}H{}"/>').format(left, bottom, left + room))
    return Markup("").join(parts), bottom + 24, pairs
