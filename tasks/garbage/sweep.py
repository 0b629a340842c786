"""Deletes garbage, in an order that may be cut off anywhere: a valid root is left, and a second sweep goes on.

Records and manifests go first, so that nothing ever claims what is gone; a shard without a record is known by its
footer. Summaries of runs go last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from tasks.commit import abort_upload, remove, remove_empty_folders
from tasks.dataset import HIDDEN, Folder
from tasks.garbage.find import MANIFESTS, RECORDS, Garbage, Item, Kind
from tasks.presence import at_work
from tasks.records import read_records, seen, write_record
from tasks.runs import run_ids
from tasks.store import Store, StoreError

DELETERS = 16
BATCH = 512
"""So many are deleted before it is asked again whether a run has begun."""


def sweep(store: Store, garbage: Garbage, on_progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Deletes what was found. Raises StoreError, with nothing more deleted, once a run is at work at the root."""
    refuse_beside_runs(store, garbage)
    _bring_on_tokens(store, garbage)
    done, total = 0, len(garbage.items)
    for kind in Kind:
        items = [item for item in garbage.items if item.kind is kind]
        for start in range(0, len(items), BATCH):
            refuse_beside_runs(store, garbage)
            with ThreadPoolExecutor(DELETERS) as pool:
                for _ in pool.map(lambda item: _delete(store, item), items[start : start + BATCH]):
                    done += 1
                    on_progress(done, total)
    remove_empty_folders(store, sorted(_emptied(store, garbage), reverse=True))


def refuse_beside_runs(store: Store, garbage: Garbage) -> None:
    """Raises StoreError where a run may be at work, or came and ended since the listing: it may need what is listed."""
    if new := sorted(set(run_ids(store)) - set(garbage.runs)):
        raise StoreError(f"{store.url}: run {new[0]} has ended since this was listed, and may need some of it")
    entries = store.entries(f"{HIDDEN}/running")
    if entries and (notes := at_work(store, store.entries(), time.time())):
        raise StoreError(
            f"{store.url}: run {notes[0].run_id} is at work since {notes[0].began}, or was killed on another machine; "
            "wait for it to end, or 6 h after its last write"
        )


def _delete(store: Store, item: Item) -> None:
    if item.upload:
        abort_upload(store, item.path, item.upload)
    else:
        remove(store, item.path)


def _bring_on_tokens(store: Store, garbage: Garbage) -> None:
    """Keeps what a manifest that goes knows of a shard that stays: that it was seen under another token too.

    Without it the next run would read a source file again whose time stamp has changed since.
    """
    going = {item.path for item in garbage.items}
    places = {item.place for item in garbage.items if item.path.startswith(f"{MANIFESTS}/")}
    for place in places:
        stage, mark = place.split("/")
        folder = Folder(stage, mark)
        records = read_records(store, folder)
        staying = {seen(record) for record in read_records(store, folder, left_out=going)}
        keys = {one[0] for one in staying}
        for record in records:
            if record.key in keys and seen(record) not in staying:
                write_record(store, folder, record)


def _emptied(store: Store, garbage: Garbage) -> Iterator[str]:
    """Folders that may be empty: of what was deleted now, and of what an earlier sweep that was cut off deleted."""
    yield from {item.path.rsplit("/", 1)[0] for item in garbage.items}
    for area in (RECORDS, MANIFESTS, f"{HIDDEN}/quarantine", f"{HIDDEN}/ledger"):
        for one in store.folders(area) if store.local else ():
            yield f"{area}/{one}"
            yield from (f"{area}/{one}/{two}" for two in store.folders(f"{area}/{one}"))
