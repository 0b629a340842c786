"""``winnow flows``, ``status`` and ``verify``: what there is to start, and what stands at an output root."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from flows.cli import CLOSED, OPEN, print_json
from flows.serve.pools import SHIPPED
from flows.start import refuse
from tasks.runs import last_run
from tasks.store import PREFLIGHT_SECONDS, Store, StoreError, within
from tasks.summary import Status
from tasks.terminal import print_summary
from tasks.verify import verify


def show_flows(flows: Mapping[str, str], as_json: bool) -> int:
    """Each flow with the deployments that the shipped file has of it."""
    of = deployments()
    if as_json:
        print_json({name: {"what": what, "deployments": of.get(name, [])} for name, what in flows.items()})
        return CLOSED
    for name, what in flows.items():
        print(f"{name}\n  {what}\n  deployments of winnow serve: {', '.join(of.get(name, [])) or 'none'}")
    return CLOSED


def deployments() -> dict[str, list[str]]:
    """Names of the shipped deployments by their flow's command, without importing Prefect, which takes seconds."""
    held: dict[str, list[str]] = {}
    given: dict[str, Any] = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    for one in given["deployments"]:
        flow = one["entrypoint"].rpartition(".")[2].replace("_", "-")
        held.setdefault(flow, []).append(one["name"])
    return held


def show_status(url: str, as_json: bool) -> int:
    """The last run that ended. Exit code as the run's own."""
    store = Store(url)
    try:
        summary = within(PREFLIGHT_SECONDS, url, lambda: last_run(store))
    except StoreError as error:
        return refuse(str(error))
    if summary is None:
        return refuse(f"{url}: no run has ended here; give the --output of one, or wait for it")
    if as_json:
        print_json(summary)
    else:
        print_summary(summary, Console())
    return CLOSED if summary.status is Status.DONE else OPEN


def show_verification(url: str, as_json: bool) -> int:
    """Every stage with what was checked of it; 0 where nothing is wrong."""
    store = Store(url)
    try:
        within(PREFLIGHT_SECONDS, url, lambda: store.entry(".winnow"))
        found = verify(store)
    except StoreError as error:
        return refuse(str(error))
    if as_json:
        print_json(found.model_dump(mode="json"))
        return CLOSED if found.ok else OPEN
    console = Console()
    table = Table("stage", "fingerprint", "shards", "rows", "verdict", box=None, pad_edge=False)
    for column in (2, 3):
        table.columns[column].justify = "right"
    for one in found.stages:
        verdict = "ok" if not one.problems else f"{len(one.problems)} problems"
        table.add_row(one.stage, one.fingerprint, f"{one.shards:,}", f"{one.rows:,}", verdict)
    console.print(table)
    for line in [*found.problems, *(line for one in found.stages for line in one.problems)]:
        console.print(f"problem: {line}", highlight=False, soft_wrap=True)
    if found.ok:
        what = f"{found.corpus_rows:,} rows in {found.corpus}" if found.corpus else "the last run built no corpus"
        console.print(f"everything is as recorded: {what}", soft_wrap=True)
    return CLOSED if found.ok else OPEN
