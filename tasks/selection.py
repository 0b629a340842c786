"""Which input shards belong to a backfill: by globs over their names, and by the date that their path holds.

A path's date is a day, or a whole month or year where it names no day (``year=2026/month=3``). A shard of a month is
chosen when any of its days is asked for.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date

from operators.base import fingerprint
from tasks.dataset import Dataset

SHOWN = 3
"""Names of shards that a refusal shows."""

_YEAR, _MONTH, _DAY = r"(?P<year>(?:19|20)\d\d)", r"(?P<month>\d\d)", r"(?P<day>\d\d)"
_DATES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?<!\d){_YEAR}(?P<mark>[-_/]){_MONTH}(?P=mark){_DAY}(?!\d)",
        rf"(?<!\d){_YEAR}{_MONTH}{_DAY}(?:\d{{6}})?(?!\d)",  # six more digits: the time of day, as WARC names have it
        r"(?<![^/])year=(?P<year>\d{4})(?:/month=(?P<month>\d{1,2})(?:/day=(?P<day>\d{1,2}))?)?(?![^/])",
        rf"(?<![^/])month={_YEAR}-{_MONTH}(?![^/])",
        rf"(?<![^/]){_YEAR}/{_MONTH}(?=/)",
    )
)


class SelectionError(ValueError):
    """Nothing can be chosen like this: one line that says what there is to choose from."""


@dataclass(frozen=True)
class Selection:
    """``globs`` over shard names (none: every shard), ``first`` and ``last`` day (none: no bound), both inclusive."""

    globs: tuple[str, ...] = ()
    first: date | None = None
    last: date | None = None

    def __bool__(self) -> bool:
        return bool(self.globs or self.first or self.last)

    def of(self, dataset: Dataset) -> tuple[Dataset, str]:
        """The chosen shards, in order, and one line that counts them. Raises SelectionError where there are none.

        The dataset's mark stays: a chosen shard is made exactly as it is in a run over all of them.
        """
        if not self:
            return dataset, ""
        patterns = [glob_pattern(one) for one in self.globs]
        names = [shard.name for shard in dataset.shards]
        matched = {name for name in names if not patterns or any(one.fullmatch(name) for one in patterns)}
        if not matched:
            raise SelectionError(
                f"{dataset.store.url}: no shard matches {', '.join(self.globs)}; it has {_some(names)}"
            )
        undated: list[str] = []
        if self.first or self.last:
            spans = {name: span(name) for name in matched}
            undated = sorted(name for name, held in spans.items() if held is None)
            if len(undated) == len(matched):
                raise SelectionError(
                    f"{dataset.store.url}: no shard's path holds a date such as 2026-03-14, 2026/03/14 or "
                    f"year=2026/month=3/day=14; it has {_some(undated)}. Choose by --shards"
                )
            held = {name: days for name, days in spans.items() if days is not None}
            matched = {name for name, days in held.items() if self._holds(*days)}
            if not matched:
                low, high = min(days[0] for days in held.values()), max(days[1] for days in held.values())
                raise SelectionError(
                    f"{dataset.store.url}: no shard is {self._range()}; its shards are from {low} to {high}"
                )
        chosen = replace(dataset, shards=tuple(one for one in dataset.shards if one.name in matched))
        said = f"backfill: {len(matched):,} of {len(names):,} input shards chosen"
        if undated:
            said += f"; {len(undated):,} left out because their path holds no date, such as {undated[0]}"
        return chosen, said

    @property
    def mark(self) -> str:
        """What the selection adds to a dataset's mark where its rows are cut (``--limit``)."""
        return fingerprint(self.globs, str(self.first), str(self.last)) if self else ""

    def _holds(self, first: date, last: date) -> bool:
        return (self.first is None or last >= self.first) and (self.last is None or first <= self.last)

    def _range(self) -> str:
        if self.first and self.last:
            return f"between {self.first} and {self.last}"
        return f"of {self.first} or later" if self.first else f"of {self.last} or earlier"


EVERYTHING = Selection()


def span(path: str) -> tuple[date, date] | None:
    """First and last day that the path speaks of: of several dates the finest, of equally fine ones the last."""
    found = sorted(_spans(path), key=lambda one: (one[1] - one[2], one[0]))
    return (found[-1][1], found[-1][2]) if found else None


def _spans(path: str) -> Iterator[tuple[int, date, date]]:
    """Where each date ends in the path, its first and its last day."""
    for pattern in _DATES:
        for match in pattern.finditer(path):
            parts = {name: int(value) for name, value in match.groupdict().items() if name != "mark" and value}
            try:
                first = date(parts["year"], parts.get("month", 1), parts.get("day", 1))
            except ValueError:  # digits that are no date
                continue
            month = parts.get("month", 12)
            last = first if "day" in parts else date(first.year, month, calendar.monthrange(first.year, month)[1])
            yield match.end(), first, last


def glob_pattern(glob: str) -> re.Pattern[str]:
    """``**`` crosses folders, ``*`` and ``?`` do not; a glob that ends in ``/`` takes all below that folder.

    Raises SelectionError for what is no glob.
    """
    out = ""
    for token in re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", f"{glob}**" if glob.endswith("/") else glob):
        out += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(token) or (
            token.replace("[!", "[^", 1) if token.startswith("[") and token.endswith("]") else re.escape(token)
        )
    try:
        return re.compile(out, re.DOTALL)
    except re.error as error:
        raise SelectionError(f"{glob!r}: no glob ({error})") from error


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - SHOWN:,} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
