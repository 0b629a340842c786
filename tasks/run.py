"""One run from its first stage to its report: collects what the stages say and decides honestly how it ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from tasks import logs, presence, samples
from tasks.credentials import line_of
from tasks.dataset import Dataset
from tasks.metrics import Exposition
from tasks.observe import observer
from tasks.runs import machine, new_run_id, save_run, versions
from tasks.stage import Execution, Executor, StageResult
from tasks.store import Store
from tasks.summary import Accounts, RunSummary, StageSummary, Status

HARM_LEVELS = tuple(str(level) for level in range(6))


class RunIncomplete(RuntimeError):
    """The run ended and left something open: failed shards, too much quarantine, or a bound. ``summary`` says what."""

    def __init__(self, summary: RunSummary) -> None:
        super().__init__("; ".join(summary.messages) or summary.status.value)
        self.summary = summary


class Drained(Exception):
    """A stage was stopped before all of its shards were done: no later stage may start on what there is."""


class Run:
    """Collects stage results in order. ``stopped`` once a bound or a signal ended the run early."""

    def __init__(self, flow: str, parameters: dict[str, Any], input_url: str, output: Store) -> None:
        self._began = time.monotonic()
        self._output = output
        self._results: dict[str, StageResult] = {}
        self._watching = observer()
        self._watching.listen()  # Prefect took SIGTERM as it entered the flow
        self._bounds = self._watching.bounds
        self._drained = ""
        self._open = False
        self.ended_well = False
        self.summary = RunSummary(
            run_id=new_run_id(),
            retry_of=self._watching.retry.run_id if self._watching.retry else "",
            flow=flow,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            input=input_url,
            output=output.url,
            parameters=parameters,
            versions=versions(),
            machine=machine(),
        )
        presence.come(output, self.summary.run_id)
        logs.run_is(self.summary.run_id)
        told = f"run {self.summary.run_id} of {flow} began: {input_url} to {output.url}"
        logs.event("run_began", told, flow=flow, input=input_url, output=output.url)
        self._exposed = Exposition(self.summary)
        self._watching.also.append(self._exposed.show)

    @property
    def stopped(self) -> bool:
        return bool(self._drained)

    def bound(self, until: datetime | None, max_tokens: int | None) -> None:
        self._bounds.limit(None if until is None else until.timestamp(), max_tokens)

    @contextmanager
    def executing(self, execution: Execution, ray_address: str) -> Iterator[None]:
        """Ray for the stages inside, where they run on it. Ends quietly where a stage was drained."""
        try:
            if execution.executor is Executor.LOCAL:
                yield
                return
            from tasks.ray_cluster import cluster  # Ray is slow to import, and a local run does not need it

            with cluster(ray_address):
                self._watching.listen()  # Ray took SIGTERM as it started
                yield
        except Drained as stage:
            self._drained = str(stage)

    def add(self, result: StageResult) -> Dataset:
        """Takes in a stage's result and gives back its dataset. Raises Drained where the stage was stopped."""
        self._results[result.summary.name] = result
        self.summary.stages.append(result.summary)
        if result.summary.status is Status.BOUNDED or self._bounds.asked:
            raise Drained(result.summary.name)
        return result.dataset

    def contents(self, stage: str) -> dict[str, str]:
        """Content hashes of the foreign shards, learnt by the first stage that read them."""
        return self._results[stage].contents()

    def accounts(self, stage: str) -> Accounts:
        return self._results[stage].summary.accounts

    def broken(self, stages: Iterable[str]) -> bool:
        """Whether a shard of one of these stages failed in the stage itself, not upstream of it."""
        return any(one.attempts for name in stages for one in self._results[name].summary.failures)

    def say(self, message: str, leaves_open: bool = False) -> None:
        """One line for a person. ``leaves_open``: the run has not ended well."""
        self.summary.messages.append(message)
        self._open = self._open or leaves_open

    def note(self, stage: str, notes: Mapping[str, str | int]) -> None:
        """Adds to what the report says of a stage."""
        self._results[stage].summary.notes.update(notes)

    def mixed(self, mix: dict[str, float]) -> None:
        self.summary.mix = mix

    def describe(
        self,
        source: Dataset,
        language: Dataset,
        harm: Dataset,
        routes: Dataset,
        rewritten: Dataset | None,
        corpus: Dataset | None,
        seed: int,
    ) -> None:
        """Histograms and samples for the report."""
        summary = self.summary
        if corpus is not None:
            summary.corpus = self._output.url_of(self._results["corpus"].summary.folder)
        summary.routes = samples.route_counts(routes)
        summary.histograms = [
            samples.level_histogram(harm, "harm_score", "Harm score", "documents", HARM_LEVELS),
            samples.level_histogram(language, "lang", "Language", "documents"),
        ]
        if rewritten is not None:
            summary.samples += samples.rephrased(source, rewritten, seed, 6)
        if corpus is not None:
            summary.samples += samples.tagged(corpus, 3)
        summary.samples += samples.dropped(source, routes, harm, seed, 4)

    def crashed(self, error: BaseException) -> None:
        """Leaves a record of a run that an error ended, so that nobody takes the run before it for this one."""
        summary = self.summary
        summary.seconds = round(time.monotonic() - self._began, 2)
        summary.status, summary.crashed = Status.FAILED, True
        summary.messages.append(f"ended by {type(error).__name__}: {line_of(error, 500)}"[:500])
        try:
            self.summary = save_run(self._output, summary)
        finally:
            self._ended()

    def finish(self, max_quarantine: float) -> RunSummary:
        """Decides the status, writes report and summary, and returns the latter."""
        summary = self.summary
        summary.seconds = round(time.monotonic() - self._began, 2)
        summary.work_done = any(stage.shards_made for stage in summary.stages)
        failed = self._open
        for stage in summary.stages:
            problem = trouble(stage, max_quarantine)
            failed = failed or bool(problem)
            for line in problem:
                logs.event("stage_in_trouble", line, logging.ERROR, stage=stage.name)
            summary.messages += problem
        if self.stopped:
            reason = self._bounds.reason or "stopped"
            summary.messages.append(f"{reason}: what is done is kept; the same command goes on from here")
        summary.status = Status.FAILED if failed else Status.BOUNDED if self.stopped else Status.DONE
        self.ended_well = summary.status is Status.DONE
        self.summary = self._watching.summary = save_run(self._output, summary)
        self._ended()
        return self.summary

    def _ended(self) -> None:
        summary = self.summary
        presence.leave(self._output, summary.run_id)
        self._exposed.end(summary)
        level = logging.INFO if summary.status is Status.DONE else logging.ERROR
        why, more = summary.messages[:1], len(summary.messages) - 1
        told = ": ".join([f"run {summary.run_id} ended {summary.status.value}", *why])
        told += f" (and {more} more)" if more > 0 else ""
        parts: dict[str, Any] = {
            "status": summary.status.value,
            "seconds": summary.seconds,
            "report": summary.report,
            "messages": summary.messages,
        }
        logs.event("run_ended", told, level, **parts)
        logs.run_is(None)
        if self._exposed.show in self._watching.also:
            self._watching.also.remove(self._exposed.show)


def trouble(stage: StageSummary, max_quarantine: float) -> list[str]:
    """What of this stage keeps the run from ending well, one line each."""
    lines: list[str] = []
    if stage.failures:
        first = stage.failures[0]
        lines.append(f"{stage.name}: {len(stage.failures)} failed shards, the first {first.shard}: {first.error}")
    accounts = stage.accounts
    if not accounts.closed():
        lines.append(
            f"{stage.name}: the accounts do not close: {accounts.rows_in:,} rows in and "
            f"{sum(accounts.outcomes.values()):,} by outcome, {accounts.rows_out:,} rows out and "
            f"{sum(accounts.outputs.values()):,} by status"
        )
    if accounts.rows_in and accounts.quarantined / accounts.rows_in > max_quarantine:
        share = accounts.quarantined / accounts.rows_in
        common = max(accounts.reasons.items(), key=lambda pair: pair[1], default=("", 0))[0]
        lines.append(
            f"{stage.name}: {accounts.quarantined:,} of {accounts.rows_in:,} rows quarantined ({share:.2%}, allowed "
            f"{max_quarantine:.2%}); mostly: {common}; see .winnow/quarantine or raise --max-quarantine"
        )
    return lines
