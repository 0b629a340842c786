"""What a trace says of a row: plain models, the same for the terminal and for --json. Rows count from 0."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Place(BaseModel):
    """One row of one Parquet file below the output root."""

    file: str
    row: int


class Step(BaseModel):
    """What one annotation said of the row."""

    stage: str
    operator: str
    version: str
    fingerprint: str
    status: str
    reason: str | None = None
    values: dict[str, Any] = Field(description="The columns that the annotation added.")
    place: Place
    models: dict[str, str] = Field(
        default_factory=dict, description="Model field -> reference, then '=' and the hash of its content."
    )
    quarantine: Place | None = Field(None, description="Where the row's bytes lie, if this stage quarantined it.")
    attempt: int = Field(
        0, description="How often the quarantined rows of its shard were retried before this came out."
    )
    retry_of: str = Field("", description="The run in whose retry this was made.")


class Decision(BaseModel):
    """``reason``: the condition that was met, or what the columns read where none was."""

    stage: str
    route: str | None
    reason: str | None
    conditions: list[tuple[str, str]] = Field(description="(route, SQL) in force, in order; the first met wins.")


class CorpusPlace(BaseModel):
    """Whether the row is in the corpus, and if not, why. ``outcome``: in_corpus, cut_by_mix, dropped, skipped, no_text,
    rejected, no_corpus or missing.
    """

    outcome: str
    why: str
    place: Place | None = None
    origin: str = ""
    tagged: bool | None = None
    tokens: int | None = None
    number: float | None = Field(None, description="The row's seeded number; below the cut it is kept.")
    cut: float | None = None


class Making(BaseModel):
    """With what a rewrite made its rows."""

    stage: str
    operator: str
    version: str
    fingerprint: str
    model: str
    weights: str = Field(description="SHA-256 of the weights.")
    engine: str
    engine_version: str
    dtype: str
    sampling: dict[str, Any]
    choice: dict[str, Any]
    seed: int
    ledger: str = Field("", description="Folder of the completions, below the output root.")
    recorded: bool = Field(True, description="False of a run of an older winnow: parameters and notes instead.")


class Prompt(BaseModel):
    file: str
    version: str
    sha256: str
    text: str


class Rewritten(BaseModel):
    """One row that was made from the document."""

    id: str
    part: int | None = None
    style: str | None = None
    status: str
    reason: str | None = Field(None, description="The gate that refused it.")
    text: str | None = None
    values: dict[str, Any] = Field(description="Every other column.")
    place: Place
    prompt: Prompt | None = None
    steps: list[Step] = Field(default_factory=list, description="What later annotations said of it.")
    corpus: CorpusPlace


class Rewriting(BaseModel):
    """What a rewrite stage did with the document. ``outcome``: rewritten, not_chosen, not_sampled, skipped, quarantined
    or unknown.
    """

    outcome: str
    why: str
    making: Making
    rows: list[Rewritten] = Field(default_factory=list)
    not_drawn: list[int] = Field(default_factory=list, description="Parts that the sample left out, up to the last.")
    quarantine: Place | None = None


class Source(BaseModel):
    """The row of the user's own file. ``state``: as_read, changed or gone; only the first is shown."""

    url: str
    row: int
    content: str = Field(description="SHA-256 of the file when it was read.")
    state: str
    why: str = ""
    values: dict[str, Any] = Field(default_factory=dict)


class Document(BaseModel):
    """A source document with all that came of it."""

    id: str
    shard: str
    ordinal: int
    source: Source
    steps: list[Step]
    decisions: list[Decision]
    rewritings: list[Rewriting]
    corpus: CorpusPlace


class Search(BaseModel):
    """What was looked through. ``complete``: every row of the version; else there may be further rows with this id."""

    complete: bool
    how: str
    shards: int = 0
    rows: int = 0
    bytes_read: int = 0
    requests: int = 0


class Trace(BaseModel):
    """``asked``: what the id is, "source document" or "rewritten row of STAGE"."""

    id: str
    asked: str
    url: str
    run: str
    started: str
    run_status: str
    later: str = Field("", description="A newer run that did not end well, if there is one.")
    search: Search
    documents: list[Document]
