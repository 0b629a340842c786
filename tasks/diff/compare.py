"""Compares two versions from their summaries, records and corpora."""

from __future__ import annotations

from typing import Any

from tasks.diff.facts import Account, Changed, CorpusChange, Difference, ShardChanges, Side
from tasks.diff.join import Joined, join
from tasks.diff.recipes import changes, shard_changes, stage_changes
from tasks.lineage.reading import Tally
from tasks.lineage.search import SOURCE, layout
from tasks.version import StageVersion, Version


def compare(a: Version, b: Version) -> Difference:
    """Everything that differs. Reads the corpora only where their records do not say that they are the same."""
    stages = stage_changes(a, b)
    source = _source(a, b)
    corpus, note = _corpus(a, b)
    routes = changes(a.run.routes, b.run.routes)
    differs = any(not one.same for one in stages) or bool(routes) or bool(source and source.any)
    differs = differs or bool(corpus and corpus.differs) or (a.gather is None) != (b.gather is None)
    return Difference(
        a=_side(a),
        b=_side(b),
        same=not differs,
        parameters=changes(a.run.parameters, b.run.parameters),
        packages=changes(a.run.versions, b.run.versions),
        stages=stages,
        source=source,
        accounts=_accounts(a, b),
        routes=[Changed(name=name, a=ours, b=theirs) for name, ours, theirs in _beside(a.run.routes, b.run.routes)],
        corpus=corpus,
        corpus_note=note,
    )


def _side(version: Version) -> Side:
    run = version.run
    return Side(url=version.store.url, run=run.run_id, started=run.started, status=run.status.value, input=run.input)


def _source(a: Version, b: Version) -> ShardChanges | None:
    """Shards of the input by name and content, as the first annotation of each run read them."""
    found: list[dict[str, str]] = []
    for version in (a, b):
        holder = layout(version).holder(SOURCE)
        if holder is None:
            return None
        found.append({name: record.inputs[0].content_id for name, record in holder.records.items()})
    return shard_changes(*found)


def _accounts(a: Version, b: Version) -> list[Account]:
    lines: list[Account] = []
    for name in dict.fromkeys([*a.stages, *b.stages]):
        ours, theirs = (
            side.stages[name].summary.accounts.model_dump() if name in side.stages else {} for side in (a, b)
        )
        whole = {"rows in": ours.get("rows_in", 0)}, {"rows in": theirs.get("rows_in", 0)}
        for kind in (whole, (ours.get("outcomes", {}), theirs.get("outcomes", {}))):
            lines += [Account(stage=name, line=line, a=one, b=two) for line, one, two in _beside(*kind)]
    return lines


def _beside(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(name, a.get(name, 0), b.get(name, 0)) for name in dict.fromkeys([*a, *b])]


def _contents(stage: StageVersion) -> list[str]:
    return sorted(record.sha256 for record in stage.records.values())


def _corpus(a: Version, b: Version) -> tuple[CorpusChange | None, str]:
    without = [name for name, side in (("A", a), ("B", b)) if side.gather is None]
    if without:
        return None, f"{' and '.join(without)} made no corpus, so no rows are compared"
    ours, theirs = a.gather, b.gather
    assert ours is not None and theirs is not None
    tally = Tally()
    if _contents(ours) == _contents(theirs):
        found = Joined(same=ours.summary.accounts.rows_out, how="not read: their files have the same SHA-256")
    else:
        found = join(a, b, tally)
    tokens = [
        Changed(name=f"{name} tokens", a=one, b=two)
        for name, one, two in _beside(ours.summary.accounts.tokens, theirs.summary.accounts.tokens)
    ]
    mix = _beside(a.run.mix, b.run.mix)
    tokens += [Changed(name=name.replace("_", " "), a=one, b=two) for name, one, two in mix if name.endswith("share")]
    change = CorpusChange(
        rows_a=ours.summary.accounts.rows_out,
        rows_b=theirs.summary.accounts.rows_out,
        same=found.same,
        changed=found.changed,
        only_a=found.only_a.total(),
        only_b=found.only_b.total(),
        only_a_by_origin=dict(found.only_a),
        only_b_by_origin=dict(found.only_b),
        sample_changed=found.sample_changed,
        sample_a=found.sample_a,
        sample_b=found.sample_b,
        tokens=tokens,
        how=found.how,
        files_read=found.files_read,
        bytes_read=tally.bytes,
    )
    return change, ""
