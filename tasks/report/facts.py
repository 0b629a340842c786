"""What the report and the terminal say first of a run: read from its summary, never counted a second way."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tasks.report.numbers import readable, share
from tasks.summary import RunSummary, Shape, StageSummary, Status

_SECRET = re.compile(r"secret|passw|credential|api_?key|access_?key|private_?key|(^|_)(token|key)$", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
_SYNTHETIC = re.compile(r"synth|rephras|rewrit|accept|generat", re.IGNORECASE)
_PASSED_BY = re.compile(r"^(not|un)[_ ]|^(skip|pass|left|unsampled|unselected|null|empty|drop)", re.IGNORECASE)


class Fate(StrEnum):
    """What became of rows, read from the name of a route, an outcome or a status; it chooses colour and place.

    ``MIXED``: no fate but all of them, the source and the corpus.
    """

    KEPT = "kept"
    TAGGED = "tagged"
    OTHER = "other"
    SYNTHETIC = "synthetic"
    REJECTED = "rejected"
    DROPPED = "dropped"
    QUARANTINED = "quarantined"
    MIXED = "mixed"


_FATES = (
    (Fate.QUARANTINED, re.compile(r"quarantin|fail|error", re.IGNORECASE)),
    (Fate.REJECTED, re.compile(r"reject|refused", re.IGNORECASE)),
    (Fate.DROPPED, re.compile(r"drop|discard|remov|filter|left_out|not_|no_|skip|null|empty", re.IGNORECASE)),
    (Fate.TAGGED, re.compile(r"tag", re.IGNORECASE)),
    (Fate.SYNTHETIC, _SYNTHETIC),
    (
        Fate.KEPT,
        re.compile(r"keep|kept|clean|pass|ok|done|annotat|eligible|bins|real|train|original|written", re.IGNORECASE),
    ),
)


def fate(name: str) -> Fate:
    return next((fate for fate, pattern in _FATES if pattern.search(name)), Fate.OTHER)


@dataclass(frozen=True)
class Facts:
    """The headline. ``None``: the run has no such number (no corpus yet, no tokens counted).

    ``quarantined``: rows by stage, without builds, which count again what was quarantined before them.
    """

    words: str
    documents_in: int | None
    rows_out: int | None
    tokens: float | None
    real_tokens: float | None
    synthetic_tokens: float | None
    requested_synthetic_share: float | None
    realised_synthetic_share: float | None
    shards_before: int
    shards_made: int
    shards_failed: int
    open_stages: tuple[str, ...]
    quarantined: tuple[tuple[str, int], ...]


def facts(summary: RunSummary) -> Facts:
    real, synthetic = summary.mix.get("real_tokens"), summary.mix.get("synthetic_tokens")
    tokens = None if real is None and synthetic is None else (real or 0) + (synthetic or 0)
    realised = summary.mix.get("realised_synthetic_share")
    if realised is None and tokens:
        realised = (synthetic or 0) / tokens
    build = last_build(summary)
    if tokens is None and build is not None and build.accounts.tokens:
        counted = build.accounts.tokens
        tokens = counted.get("corpus", counted.get("corpus_tokens", sum(counted.values())))
    stages = summary.stages
    return Facts(
        words=status_words(summary),
        documents_in=stages[0].accounts.rows_in if stages else None,
        rows_out=build.accounts.rows_out if build is not None else None,
        tokens=tokens,
        real_tokens=real,
        synthetic_tokens=synthetic,
        requested_synthetic_share=summary.mix.get("requested_synthetic_share"),
        realised_synthetic_share=realised,
        shards_before=sum(stage.shards_before for stage in stages),
        shards_made=sum(stage.shards_made for stage in stages),
        shards_failed=sum(len(stage.failures) for stage in stages),
        open_stages=tuple(stage.name for stage in stages if not stage.accounts.closed()),
        quarantined=tuple(
            (s.name, s.accounts.quarantined) for s in stages if s.accounts.quarantined and s.shape is not Shape.BUILD
        ),
    )


def status_words(summary: RunSummary) -> str:
    """One plain sentence: how the run ended, and what that means for its reader."""
    if summary.status is Status.FAILED:
        failed = sum(len(stage.failures) for stage in summary.stages)
        if failed:
            return f"Failed: {failed:,} shard{'s' if failed != 1 else ''} could not be done. What is finished is kept."
        return "Failed. What is finished is kept."
    if summary.status is Status.BOUNDED:
        return "Stopped at its bound, to be gone on with: the same command takes up where it ended."
    if not summary.work_done:
        return "This run found everything finished and did no work."
    build = last_build(summary)
    if summary.corpus and build is not None and build.accounts.rows_out:
        documents, rows = summary.stages[0].accounts.rows_in, build.accounts.rows_out
        return f"{readable(documents)} documents became a corpus of {readable(rows)} rows."
    if summary.corpus or not summary.stages:
        return "Finished."
    documents = summary.stages[0].accounts.rows_in
    return f"{readable(documents)} document{'' if documents == 1 else 's'} went through every stage before the corpus."


def last_build(summary: RunSummary) -> StageSummary | None:
    """The build that made the corpus: the last one. None where the run ended before it: other steps make no corpus."""
    builds = [stage for stage in summary.stages if stage.shape is Shape.BUILD]
    return builds[-1] if builds and summary.corpus else None


def is_synthetic(status: str) -> bool:
    return bool(_SYNTHETIC.search(status))


def passed_by(outcome: str) -> bool:
    """Whether rows of this outcome were looked at and left alone: they cost a rewrite nothing."""
    return bool(_PASSED_BY.search(outcome))


def mix_words(real: float, synthetic: float) -> str:
    """'62 % : 38 %'."""
    return f"{share(real, real + synthetic)} : {share(synthetic, real + synthetic)}"


def without_secrets(value: Any, name: str = "") -> Any:
    """A report is forwarded: values under names like ``secret_key``, and passwords in URLs, stay at home."""
    if isinstance(value, dict):
        return {str(key): without_secrets(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item, name) for item in value]
    if value not in (None, "", False) and not isinstance(value, bool | int | float) and _SECRET.search(name):
        return "(left out)"
    return _USERINFO.sub("", value) if isinstance(value, str) else value


def repeat_command(summary: RunSummary) -> str:
    return f"winnow {summary.flow.replace('_', '-')} --config run.yaml"


def verify_command(summary: RunSummary) -> str:
    """Takes the output root: stages, corpus and records are all looked at."""
    return f"winnow verify {shlex.quote(str(without_secrets(summary.output)))}"
