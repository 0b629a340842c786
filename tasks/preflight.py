"""Refuses before anything is loaded: input, columns, output and models are looked at first, ten seconds a question."""

from __future__ import annotations

from collections.abc import Iterable

from tasks.commit import probe
from tasks.dataset import Dataset
from tasks.models import ModelError, resolve
from tasks.source import SourceColumns, check_columns, limited, open_source, root_of
from tasks.store import LISTING_SECONDS, PREFLIGHT_SECONDS, Store, StoreError, within


class Refused(ValueError):
    """The run cannot start: one line that names the thing and the remedy."""


def source(url: str, columns: dict[str, str], limit: int | None) -> Dataset:
    """The input dataset, listed, with the columns of its first shard checked."""
    mapping = SourceColumns(mapping=tuple(sorted(columns.items())))
    try:
        within(PREFLIGHT_SECONDS, url, lambda: root_of(url).answers())
        dataset = within(LISTING_SECONDS, url, lambda: open_source(url, mapping))
        within(PREFLIGHT_SECONDS, url, lambda: any(check_columns(dataset, shard) for shard in dataset.shards))
        return dataset if limit is None else within(LISTING_SECONDS, url, lambda: limited(dataset, limit))
    except StoreError as error:
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
        if within(PREFLIGHT_SECONDS, url, store.lacks_bucket):
            raise Refused(f"{url}: its bucket does not exist; check the spelling, and create the bucket first")
        within(PREFLIGHT_SECONDS, url, lambda: probe(store, single_writer))
    except StoreError as error:
        raise Refused(str(error)) from error
    return store


def models(references: Iterable[str]) -> None:
    """Resolves every model once, so that a missing one is said now and not by a worker in an hour."""
    for reference in dict.fromkeys(references):
        try:
            resolve(reference)
        except ModelError as error:
            raise Refused(str(error)) from error
