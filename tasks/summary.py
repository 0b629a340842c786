"""What a run says of itself: accounts by stage, and the summary that the report, the terminal and --json show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Shape(StrEnum):
    ANNOTATE = "annotate"
    REWRITE = "rewrite"
    BUILD = "build"


class Status(StrEnum):
    """How a run or a stage ended. ``BOUNDED``: stopped by --limit, --max-tokens, --until or a signal, to be gone on
    with.
    """

    DONE = "done"
    BOUNDED = "bounded"
    FAILED = "failed"


class Accounts(BaseModel):
    """Rows in by outcome, rows out by status apart from them. They close, or the run does not end well."""

    model_config = ConfigDict(extra="forbid")

    rows_in: int = 0
    outcomes: dict[str, int] = Field(default_factory=dict, description="Every row in, by outcome: sums to rows_in.")
    rows_out: int = 0
    outputs: dict[str, int] = Field(default_factory=dict, description="Every row out, by status: sums to rows_out.")
    reasons: dict[str, int] = Field(default_factory=dict, description="Why rows were quarantined, rejected or dropped.")
    tokens: dict[str, int] = Field(default_factory=dict, description="prompt and completion tokens, corpus tokens, ...")

    def closed(self) -> bool:
        return sum(self.outcomes.values()) == self.rows_in and sum(self.outputs.values()) == self.rows_out

    @property
    def quarantined(self) -> int:
        return self.outcomes.get("quarantined", 0)

    @staticmethod
    def total(many: Iterable[Accounts]) -> Accounts:
        rows_in = rows_out = 0
        sums: dict[str, Counter[str]] = {k: Counter() for k in ("outcomes", "outputs", "reasons", "tokens")}
        for one in many:
            rows_in += one.rows_in
            rows_out += one.rows_out
            for key, counter in sums.items():
                for name, count in getattr(one, key).items():  # a tenth of what Counter.update takes for a few names
                    counter[name] += count
        return Accounts(rows_in=rows_in, rows_out=rows_out, **{key: dict(sorted(c.items())) for key, c in sums.items()})


class Failure(BaseModel):
    """A shard that could not be done in the allowed attempts, with the last error in one line."""

    shard: str
    error: str
    attempts: int


class StageSummary(BaseModel):
    """One stage over one dataset version."""

    name: str
    shape: Shape
    operator: str = Field(description="Operator class name, or the step of a build.")
    version: str
    fingerprint: str
    folder: str = Field(description="Folder below the output root that holds the stage's Parquet files.")
    dataset_version: str = ""
    status: Status = Status.DONE
    shards_before: int = Field(0, description="Shards found finished before this run.")
    shards_made: int = 0
    failures: list[Failure] = Field(default_factory=list)
    accounts: Accounts = Field(default_factory=Accounts)
    made: Accounts = Field(default_factory=Accounts, description="Of the accounts, what this run made itself.")
    seconds: float = Field(0.0, description="Wall time of the stage, set-up included.")
    setup_seconds: float = Field(0.0, description="Longest set-up of a worker (loading models).")
    busy_share: float = Field(0.0, description="Share of the workers' time after set-up spent working on shards.")
    workers: int = 1
    notes: dict[str, Any] = Field(default_factory=dict, description="Engine, ledger hits, resolved thresholds, ...")
    identity: dict[str, Any] = Field(
        default_factory=dict,
        description="What the fingerprint stands for: configuration, prompts, model hashes, engine, marks of inputs.",
    )


class Sample(BaseModel):
    """One row before and after, for a person to read."""

    kind: str = Field(description="rephrased, tagged or dropped")
    id: str
    label: str = Field(description="Style, route or reason.")
    before: str
    after: str = ""
    harm_score: int | None = None


class Histogram(BaseModel):
    """Counts by bin label, in order."""

    title: str
    unit: str
    bins: list[str]
    counts: list[int]


class RunSummary(BaseModel):
    """Everything the report and the terminal show of one run."""

    format_version: int = 1
    run_id: str
    flow: str
    status: Status = Status.DONE
    started: str = Field(description="UTC, ISO 8601.")
    seconds: float = 0.0
    input: str
    output: str
    corpus: str = Field("", description="URL of the finished corpus, empty where none was made.")
    report: str = Field("", description="URL of the HTML report.")
    retry_of: str = Field("", description="The run whose quarantined rows and failed shards this one did again.")
    crashed: bool = Field(False, description="An error ended it before its last stage.")
    work_done: bool = Field(True, description="False where every stage was found finished.")
    parameters: dict[str, Any] = Field(default_factory=dict)
    stages: list[StageSummary] = Field(default_factory=list)
    routes: dict[str, int] = Field(default_factory=dict, description="Source documents by route.")
    mix: dict[str, float] = Field(
        default_factory=dict,
        description="real_tokens, synthetic_tokens, requested_synthetic_share, realised_synthetic_share.",
    )
    histograms: list[Histogram] = Field(default_factory=list)
    samples: list[Sample] = Field(default_factory=list)
    versions: dict[str, str] = Field(
        default_factory=dict, description="Of winnow, Python and the packages that matter."
    )
    machine: dict[str, str] = Field(default_factory=dict)
    messages: list[str] = Field(default_factory=list, description="One line each, for a person.")

    @property
    def quarantined(self) -> int:
        return sum(stage.accounts.quarantined for stage in self.stages)
