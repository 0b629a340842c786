"""``winnow lineage`` and ``winnow diff``: where a row came from, and what differs between two versions."""

from __future__ import annotations

from rich.console import Console

from flows.cli import CLOSED, print_json
from flows.start import refuse
from tasks.diff.compare import compare
from tasks.diff.terminal import print_difference
from tasks.lineage.terminal import print_trace
from tasks.lineage.trace import Nowhere, trace
from tasks.store import StoreError
from tasks.version import open_version

DIFFERENT = 1


def show_lineage(url: str, row: str, shard: str | None, as_json: bool, everything: bool = False) -> int:
    """0 where the id was found, 2 where it is nowhere or nothing can be read."""
    try:
        found = trace(open_version(url), row, shard, everything)
    except (StoreError, Nowhere) as error:
        return refuse(str(error))
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print_trace(found, Console())
    return CLOSED


def show_diff(a: str, b: str, as_json: bool) -> int:
    """0 where both are the same, 1 where they differ, 2 where one cannot be read. Like diff(1)."""
    try:
        found = compare(open_version(a), open_version(b))
    except StoreError as error:
        return refuse(str(error))
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print_difference(found, Console())
    return CLOSED if found.same else DIFFERENT
