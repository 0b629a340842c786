"""Refuses before anything is loaded: input, columns, output and models are looked at first, five seconds a question."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from operators.language.choose import OPENAI
from operators.language.engine import EngineSettings
from tasks.commit import probe
from tasks.dataset import Dataset
from tasks.models import ModelError, resolve
from tasks.selection import EVERYTHING, Selection, SelectionError
from tasks.source import SourceColumns, check_columns, limited, open_source, root_of
from tasks.store import LISTING_SECONDS, PREFLIGHT_SECONDS, Store, StoreError, within


class Refused(ValueError):
    """The run cannot start: one line that names the thing and the remedy."""


def source(
    url: str,
    columns: dict[str, str],
    limit: int | None,
    selection: Selection = EVERYTHING,
    say: Callable[[str], None] = lambda line: None,
) -> Dataset:
    """The input dataset, listed, with the columns of its first shard checked.

    ``limit`` counts the rows of the shards that ``selection`` chose. ``say`` gets one line on what was chosen.
    """
    mapping = SourceColumns(mapping=tuple(sorted(columns.items())))
    try:
        within(PREFLIGHT_SECONDS, url, lambda: root_of(url).answers())
        listed = within(LISTING_SECONDS, url, lambda: open_source(url, mapping))
        dataset, chosen = selection.of(listed)
        within(PREFLIGHT_SECONDS, url, lambda: any(check_columns(dataset, shard) for shard in dataset.shards))
        if chosen:
            say(chosen)
        return (
            dataset if limit is None else within(LISTING_SECONDS, url, lambda: limited(dataset, limit, selection.mark))
        )
    except (StoreError, SelectionError) as error:
        raise Refused(str(error)) from error


def output(url: str, given: Dataset, input_url: str, single_writer: bool) -> Store:
    """The output store, probed with a conditional write. Never a place that the next run would take for its input."""
    store = Store(url)
    try:
        inside = store.within(given.store) and (given.store.within(Store(input_url)) or "**" in input_url)
    except StoreError as error:
        raise Refused(str(error)) from error
    if inside:
        raise Refused(
            f"{url}: lies inside the input {input_url}, whose next listing would find it; choose another folder"
        )
    try:
        within(PREFLIGHT_SECONDS, url, store.answers)
        if within(PREFLIGHT_SECONDS, url, store.lacks_bucket):
            raise Refused(f"{url}: its bucket does not exist; check the spelling, and create the bucket first")
        within(PREFLIGHT_SECONDS, url, lambda: probe(store, single_writer))
    except StoreError as error:
        raise Refused(str(error)) from error
    return store


def fleet(engine: EngineSettings, longest: int, say: Callable[[str], None] = lambda line: None) -> EngineSettings:
    """The settings of a remote engine with what its servers say filled in; those of any other as they are.

    ``longest``: tokens of the longest prompt and answer together. ``say`` gets a line for each server that is away.
    """
    if engine.kind != OPENAI:
        return engine
    from operators.language.served import agreed

    found, away = agreed(engine, longest)
    for line in away:
        say(f"{line} The others are used meanwhile.")
    return found


def models(references: Iterable[str]) -> None:
    """Resolves every model once, so that a missing one is said now and not by a worker in an hour."""
    for reference in dict.fromkeys(references):
        try:
            resolve(reference)
        except ModelError as error:
            raise Refused(str(error)) from error
