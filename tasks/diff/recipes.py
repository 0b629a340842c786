"""Why two stages of one name have other fingerprints: what went into each, side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from tasks.diff.facts import Changed, Names, ShardChanges, StageChange
from tasks.version import StageVersion, Version

# How a model is named does not enter the fingerprint; what comes from other stages is told as such.
_NOT_OWN = ("references", "inputs", "joined", "ledger")


def stage_changes(a: Version, b: Version) -> list[StageChange]:
    """One entry a stage of either version, in the order in which they ran."""
    names = list(dict.fromkeys([*a.stages, *b.stages]))
    return [_stage(a, b, name) for name in names]


def _stage(a: Version, b: Version, name: str) -> StageChange:
    ours, theirs = a.stages.get(name), b.stages.get(name)
    mark_a = None if ours is None else ours.summary.fingerprint
    mark_b = None if theirs is None else theirs.summary.fingerprint
    if ours is None or theirs is None:
        return StageChange(stage=name, a=mark_a, b=mark_b, same=False)
    if mark_a == mark_b:
        version = ours.summary.dataset_version
        same = bool(version) and version == theirs.summary.dataset_version
        shards = None if same else shard_changes(_keys(ours), _keys(theirs))
        return StageChange(stage=name, a=mark_a, b=mark_b, same=same or not (shards and shards.any), shards=shards)
    first, second = ours.summary.identity, theirs.summary.identity
    causes = [one for one in changes(_own(first), _own(second)) if one.a != one.b]
    follows = _follows(a, b, first, second)
    # a recipe without a mark of inputs in it is remade by what the steps before it came to
    return StageChange(
        stage=name, a=mark_a, b=mark_b, same=False, causes=causes, follows=follows, recorded=bool(first and second)
    )


def shard_changes(a: Mapping[str, str], b: Mapping[str, str]) -> ShardChanges:
    """``a``, ``b``: shard name -> what identifies its rows."""
    both = a.keys() & b.keys()
    changed = [name for name in both if a[name] != b[name]]
    return ShardChanges(
        same=len(both) - len(changed),
        added=Names.of(list(b.keys() - a.keys())),
        removed=Names.of(list(a.keys() - b.keys())),
        changed=Names.of(changed),
    )


def _keys(stage: StageVersion) -> dict[str, str]:
    return {name: record.key for name, record in stage.records.items()}


def changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Changed]:
    """Values that are not equal, by dotted name: ``config.routes.keep``."""
    ours, theirs = dict(_flat("", a)), dict(_flat("", b))
    return [
        Changed(name=name, a=ours.get(name), b=theirs.get(name))
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name) != theirs.get(name)
    ]


def _flat(prefix: str, value: Any) -> Iterable[tuple[str, Any]]:
    pairs = _pairs(value)
    if pairs is None or not pairs:
        yield prefix, value
        return
    for name, held in pairs:
        yield from _flat(f"{prefix}.{name}" if prefix else str(name), held)


def _pairs(value: Any) -> list[tuple[str, Any]] | None:
    """Of a mapping, and of a list of named things such as (route, SQL condition)."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list | tuple) and value and all(_named(one) for one in value):
        names = [one[0] for one in value]
        return [(one[0], one[1]) for one in value] if len(set(names)) == len(names) else None
    return None


def _named(one: Any) -> bool:
    return isinstance(one, list | tuple) and len(one) == 2 and isinstance(one[0], str)


def _own(identity: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: value for name, value in identity.items() if name not in _NOT_OWN}
    if "prompts" in own:  # what is compared, and what a person can look at, is which text, not all of it
        own["prompts"] = [[file, f"sha256 {_digest(text)}"] for file, text in own["prompts"].items()]
    return own


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _follows(a: Version, b: Version, first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Names of the inputs whose fingerprint, or whose shards, are others."""
    found: list[str] = []
    if "joined" in first and "joined" in second:
        ours = {stage: (mark, version) for stage, mark, version in _joined(a, first)}
        theirs = {stage: (mark, version) for stage, mark, version in _joined(b, second)}
        found += [name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]
    names_a = {stage.summary.fingerprint: name for name, stage in a.stages.items()}
    names_b = {stage.summary.fingerprint: name for name, stage in b.stages.items()}
    marks_a, marks_b = list(first.get("inputs", [])), list(second.get("inputs", []))
    if marks_a != marks_b:
        known_a = {names_a.get(mark, "source (columns or limit)"): mark for mark in marks_a}
        known_b = {names_b.get(mark, "source (columns or limit)"): mark for mark in marks_b}
        found += [name for name in dict.fromkeys([*known_a, *known_b]) if known_a.get(name) != known_b.get(name)]
    return list(dict.fromkeys(found))


def _joined(version: Version, identity: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    names = {stage.summary.fingerprint: name for name, stage in version.stages.items()}
    return [(names.get(mark, mark), mark, dataset) for mark, dataset in identity["joined"]]
