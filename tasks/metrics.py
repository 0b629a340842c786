"""A run's figures for Prometheus: over HTTP while it runs, and as a text file for node_exporter's textfile collector.

Every figure is read from the :class:`~tasks.progress.Progress` that the terminal shows, so both always say the same.
Off unless the environment asks for it: ``WINNOW_METRICS_PORT`` (on loopback; ``WINNOW_METRICS_ADDRESS`` for clusters)
and ``WINNOW_METRICS_FILE`` (a ``.prom`` file). One registry a run; the process serves the run that began last, and goes
on serving its last figures after it ended. Nothing here ever fails a run: what cannot be served is said once.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tasks.logs import LOG, masked
from tasks.progress import SECONDS_BUCKETS, Progress
from tasks.summary import RunSummary, Status

PORT, ADDRESS, FILE = "WINNOW_METRICS_PORT", "WINNOW_METRICS_ADDRESS", "WINNOW_METRICS_FILE"
LOOPBACK = "127.0.0.1"
FILE_SECONDS = 10.0
MOST_REASONS = 24
"""Classes of reasons a stage has of its own; rows with any further one count as ``other``."""
OTHER, RUNNING = "other", "running"
PACKAGES = ("python", "prefect", "ray", "pyarrow")
"""Whose versions the run's info holds; all of them stand in the report."""
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`")
_NUMBER = re.compile(r"\d[\d.,_]*")


def reason_class(reason: str) -> str:
    """A reason without what differs from row to row: text after a colon, quoted parts, numbers."""
    plain = _NUMBER.sub("#", _QUOTED.sub("...", reason.split(":", 1)[0]))
    return " ".join(plain.split())[:60] or OTHER


@dataclass(eq=False)
class RunMetrics(Collector):
    """The figures of one run. ``observe`` takes what a stage says of itself, ``ended`` how the run ended."""

    run: RunSummary
    began: float = field(default_factory=time.time)
    status: str = RUNNING
    _stages: dict[str, Progress] = field(default_factory=dict)
    _open: set[str] = field(default_factory=set)
    _classes: dict[str, set[str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def observe(self, progress: Progress) -> None:
        with self._lock:
            self._stages[progress.stage] = progress

    def ended(self, summary: RunSummary) -> None:
        """The run's last word; stages whose accounts do not close are named."""
        with self._lock:
            self.status = summary.status.value
            self._open = {stage.name for stage in summary.stages if not stage.accounts.closed()}

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            stages = list(self._stages.values())
            yield from self._of_run(stages)
            yield from self._of_shards(stages)
            yield from self._of_rows(stages)
            yield from self._of_workers(stages)

    def _of_run(self, stages: list[Progress]) -> Iterator[Metric]:
        info = {"flow": self.run.flow, "run_id": self.run.run_id, "output": masked(self.run.output)}
        found = self.run.versions
        info |= {"version": found.get("winnow-corpus", "")} | {name: found.get(name, "") for name in PACKAGES}
        yield InfoMetricFamily("winnow_run", "The run that this process does or did last.", value=info)
        state = GaugeMetricFamily("winnow_run_status", "1 for the state that the run is in.", labels=["status"])
        for name in (RUNNING, *(status.value for status in Status)):
            state.add_metric([name], float(name == self.status))
        yield state
        yield GaugeMetricFamily("winnow_run_start_time_seconds", "When the run began, unix time.", value=self.began)
        limit = self.run.parameters.get("max_quarantine")
        if isinstance(limit, int | float):
            yield GaugeMetricFamily(
                "winnow_max_quarantine_ratio", "Share of a stage's rows that may be quarantined.", value=float(limit)
            )
        moved = max([self.began, *(one.moved for one in stages)])
        yield GaugeMetricFamily(
            "winnow_last_progress_timestamp_seconds", "When anything last went on in the run, unix time.", value=moved
        )
        accounts = GaugeMetricFamily(
            "winnow_stage_accounts_open", "1 where the stage's accounts do not close.", labels=["stage"]
        )
        for one in stages:
            accounts.add_metric([one.stage], float(one.stage in self._open or not one.accounts.closed()))
        yield accounts

    def _of_shards(self, stages: list[Progress]) -> Iterator[Metric]:
        shards = GaugeMetricFamily(
            "winnow_shards",
            "Shards of the stage: found finished before this run, made by it, failed, or left to do.",
            labels=["stage", "state"],
        )
        seconds = HistogramMetricFamily(
            "winnow_shard_duration_seconds", "Seconds from reading a shard to its record.", labels=["stage"]
        )
        for one in stages:
            for state, count in (("found", one.found), ("made", one.made), ("failed", one.failed), ("left", one.left)):
                shards.add_metric([one.stage, state], count)
            total, buckets = 0, []
            for bound, count in zip([*map(str, SECONDS_BUCKETS), "+Inf"], one.shard_seconds, strict=True):
                total += count
                buckets.append((bound, total))
            seconds.add_metric([one.stage], buckets, one.shard_seconds_sum)
        yield from (shards, seconds)
        yield _gauge("winnow_stage_active", "1 while the stage runs.", stages, lambda one: float(one.status is None))
        yield _gauge("winnow_stage_elapsed_seconds", "Wall time of the stage so far.", stages, lambda one: one.seconds)
        yield _gauge(
            "winnow_stage_eta_seconds",
            "Seconds that the stage will still take; absent where it cannot be said.",
            stages,
            lambda one: one.eta_seconds,
        )
        yield _counter(
            "winnow_read_bytes", "Size of the input shards of the shards made.", stages, lambda one: one.read_bytes
        )
        yield _counter("winnow_written_bytes", "Size of the shards made.", stages, lambda one: one.written_bytes)
        yield _counter("winnow_shard_retries", "Attempts after a shard's first.", stages, lambda one: one.retries)

    def _of_rows(self, stages: list[Progress]) -> Iterator[Metric]:
        rows = CounterMetricFamily(
            "winnow_rows", "Rows in of the shards made by this run, by outcome.", labels=["stage", "outcome"]
        )
        out = CounterMetricFamily(
            "winnow_output_rows", "Rows out of the shards made by this run, by status.", labels=["stage", "status"]
        )
        reasons = CounterMetricFamily(
            "winnow_reason_rows",
            "Rows quarantined, rejected, skipped or dropped, by class of reason; rare classes count as 'other'.",
            labels=["stage", "reason"],
        )
        tokens = CounterMetricFamily(
            "winnow_tokens", "Tokens in the accounts of the shards made, by kind.", labels=["stage", "kind"]
        )
        for one in stages:
            for family, counts in (
                (rows, one.accounts.outcomes),
                (out, one.accounts.outputs),
                (reasons, self._bounded(one.stage, one.accounts.reasons)),
                (tokens, one.accounts.tokens),
            ):
                for name, count in counts.items():
                    family.add_metric([one.stage, name], count)
        yield from (rows, out, reasons, tokens)
        yield _counter(
            "winnow_worked_rows",
            "Rows that workers went through, live, repeated attempts included; of a rewrite, requests answered.",
            stages,
            lambda one: one.rows,
        )
        yield _counter(
            "winnow_generated_tokens", "Tokens that an engine generated in this run, live.", stages, lambda o: o.tokens
        )
        spent = CounterMetricFamily(
            "winnow_engine_spent",
            "Requests sent, retries, answers and tokens of an engine behind an API, live, by kind.",
            labels=["stage", "kind"],
        )
        for one in stages:
            for name, count in one.spent.items():
                spent.add_metric([one.stage, name.replace(" ", "_")], count)
        yield spent
        asked = [one for one in stages if "requests" in one.notes]
        yield _counter(
            "winnow_engine_requests", "Requests of the shards made.", asked, lambda one: one.notes["requests"]
        )
        yield _counter("winnow_ledger_hits", "Of these, answered from the ledger.", asked, lambda one: one.ledger_hits)

    def _of_workers(self, stages: list[Progress]) -> Iterator[Metric]:
        yield _gauge("winnow_workers", "Workers that are set up.", stages, lambda one: one.workers)
        yield _counter("winnow_workers_lost", "Workers that died or were killed.", stages, lambda one: one.lost)
        yield _counter(
            "winnow_worker_busy_seconds", "Worker time with a shard at hand.", stages, lambda one: one.busy_seconds
        )
        yield _counter(
            "winnow_worker_ready_seconds", "Worker time after set-up.", stages, lambda one: one.ready_seconds
        )
        yield _gauge(
            "winnow_busy_ratio",
            "Share of the workers' time after set-up with a shard at hand; absent before.",
            stages,
            lambda one: one.busy_share,
        )

    def _bounded(self, stage: str, reasons: dict[str, int]) -> Counter[str]:
        """By class. The first classes of a stage keep their series, so that no counter ever falls."""
        known = self._classes.setdefault(stage, set())
        counts: Counter[str] = Counter()
        for reason, count in reasons.items():
            one = reason_class(reason)
            if one not in known and len(known) < MOST_REASONS:
                known.add(one)
            counts[one if one in known else OTHER] += count
        return counts


def _gauge(name: str, what: str, stages: list[Progress], value: Callable[[Progress], float | None]) -> Metric:
    family = GaugeMetricFamily(name, what, labels=["stage"])
    for one in stages:
        held = value(one)
        if held is not None:
            family.add_metric([one.stage], held)
    return family


def _counter(name: str, what: str, stages: list[Progress], value: Callable[[Progress], float]) -> Metric:
    family = CounterMetricFamily(name, what, labels=["stage"])
    for one in stages:
        family.add_metric([one.stage], value(one))
    return family


class _Latest(Collector):
    """What the process serves: the run that began last."""

    def __init__(self) -> None:
        self.run: RunMetrics | None = None
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        self.lock = threading.Lock()
        self.served: set[tuple[str, int]] = set()
        self.refused: set[str] = set()

    def collect(self) -> Iterator[Metric]:
        if self.run is not None:
            yield from self.run.collect()


_LATEST = _Latest()


class Exposition:
    """Exposes one run's metrics where the environment asks for it. ``show`` and ``end`` never raise."""

    def __init__(self, run: RunSummary) -> None:
        self.metrics = RunMetrics(run)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self.metrics)
        self._file = os.environ.get(FILE, "").strip()
        self._written = 0.0
        _LATEST.run = self.metrics
        _serve()
        self._write()

    def show(self, progress: Progress) -> None:
        self.metrics.observe(progress)
        if time.monotonic() - self._written >= FILE_SECONDS:
            self._write()

    def end(self, summary: RunSummary) -> None:
        self.metrics.ended(summary)
        self._write()

    def _write(self) -> None:
        """Whole or not at all: the library writes beside the file and renames."""
        if not self._file:
            return
        self._written = time.monotonic()
        try:
            write_to_textfile(self._file, self._registry)
        except OSError as error:
            _once(f"{FILE}={self._file}: metrics cannot be written ({error.strerror or error}); the run goes on")


def _serve() -> None:
    given = os.environ.get(PORT, "").strip()
    address = os.environ.get(ADDRESS, "").strip() or LOOPBACK
    if given in ("", "0"):
        return
    try:
        port = int(given)
        with _LATEST.lock:
            if (address, port) not in _LATEST.served:
                start_http_server(port, address, _LATEST.registry)
                _LATEST.served.add((address, port))
    except (OSError, OverflowError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        _once(f"{PORT}={given}: metrics cannot be served on {address} ({why}); the run goes on without")


def _once(what: str) -> None:
    if what not in _LATEST.refused:
        _LATEST.refused.add(what)
        LOG.warning(what)
