"""With which prompt, model, engine and sampling a rewrite made its rows: what its fingerprint stood for."""

from __future__ import annotations

import hashlib
from typing import Any

from tasks.dataset import HIDDEN
from tasks.lineage.facts import Making, Prompt
from tasks.summary import RunSummary, StageSummary


def making(stage: StageSummary, run: RunSummary) -> Making:
    told = stage.identity
    engine, notes, asked = told.get("engine", {}), stage.notes, run.parameters
    choice = told.get("choice", {"column": "route", "values": None, "share": asked.get("rephrase_share")})
    sampling = told.get(
        "sampling", {"temperature": asked.get("temperature"), "max_tokens": asked.get("max_new_tokens")}
    )
    return Making(
        stage=stage.name,
        operator=stage.operator,
        version=stage.version,
        fingerprint=stage.fingerprint,
        model=str(told.get("references", {}).get("engine") or notes.get("model") or asked.get("model") or ""),
        weights=str(engine.get("weights", "")),
        engine=str(engine.get("engine") or notes.get("engine", "")),
        engine_version=str(engine.get("engine_version", "")),
        dtype=str(engine.get("dtype") or notes.get("dtype", "")),
        sampling=sampling,
        choice=choice,
        seed=int(choice.get("seed", asked.get("seed") or 0)),
        ledger=f"{HIDDEN}/ledger/{told['ledger']}" if "ledger" in told else "",
        recorded=bool(told),
    )


def prompt_of(stage: StageSummary, style: str | None) -> Prompt | None:
    """The prompt file of a style, ``<style>.<version>.md``; None of a rewriter without prompt files."""
    for file, text in stage.identity.get("prompts", {}).items():
        name, _, rest = file.partition(".")
        if name == style:
            digest = hashlib.sha256(text.encode()).hexdigest()
            return Prompt(file=file, version=rest.rsplit(".", 1)[0], sha256=digest, text=text)
    return None


def models_of(stage: StageSummary) -> dict[str, str]:
    """Model field -> ``reference=sha256`` of an annotation."""
    hashes: dict[str, Any] = stage.identity.get("models", {})
    references = stage.identity.get("references", {})
    return {name: f"{references.get(name, '?')}={digest}" for name, digest in hashes.items()}
