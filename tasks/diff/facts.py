"""What a comparison says: plain models, the same for the terminal and for --json."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

NAMED = 10
"""Shards and ids that are named of each kind; all are counted."""


class Side(BaseModel):
    url: str
    run: str
    started: str
    status: str
    input: str


class Changed(BaseModel):
    """One value by name; None where a side does not have it."""

    name: str
    a: Any = None
    b: Any = None


class Names(BaseModel):
    """How many there are, and the first of them."""

    count: int = 0
    first: list[str] = Field(default_factory=list)

    @staticmethod
    def of(names: list[str]) -> Names:
        return Names(count=len(names), first=sorted(names)[:NAMED])


class ShardChanges(BaseModel):
    same: int
    added: Names = Field(description="In B alone.")
    removed: Names = Field(description="In A alone.")
    changed: Names = Field(description="The same name, another content or cut.")

    @property
    def any(self) -> bool:
        return bool(self.added.count or self.removed.count or self.changed.count)


class StageChange(BaseModel):
    """``same``: one recipe over the same shards. ``causes``: what of the stage itself made another fingerprint.
    ``follows``: the stages before it whose change reached it.
    """

    stage: str
    a: str | None = Field(description="Fingerprint; None where A does not have the stage.")
    b: str | None
    same: bool
    causes: list[Changed] = Field(default_factory=list)
    follows: list[str] = Field(default_factory=list)
    recorded: bool = Field(
        True, description="False where an older winnow did not record what the fingerprint stands for."
    )
    shards: ShardChanges | None = Field(None, description="Where the recipe is the same and the shards are not.")


class Account(BaseModel):
    """One line of the accounts of a stage: ``rows_in``, or the rows of one outcome."""

    stage: str
    line: str
    a: int
    b: int


class CorpusChange(BaseModel):
    """Rows are matched by id; an id that occurs several times is matched as often as both sides have it."""

    rows_a: int
    rows_b: int
    same: int = Field(description="The same id with the same text.")
    changed: int = Field(description="The same id with another text.")
    only_a: int
    only_b: int
    only_a_by_origin: dict[str, int] = Field(default_factory=dict)
    only_b_by_origin: dict[str, int] = Field(default_factory=dict)
    sample_changed: list[str] = Field(default_factory=list)
    sample_a: list[str] = Field(default_factory=list)
    sample_b: list[str] = Field(default_factory=list)
    tokens: list[Changed] = Field(description="Tokens by origin, and the mix.")
    how: str = Field(description="How the rows were joined.")
    files_read: int = 0
    bytes_read: int = 0

    @property
    def differs(self) -> bool:
        return bool(self.changed or self.only_a or self.only_b)


class Difference(BaseModel):
    """``same``: every recipe, every shard and every corpus row. Parameters that change no output may still differ."""

    a: Side
    b: Side
    same: bool
    parameters: list[Changed]
    packages: list[Changed]
    stages: list[StageChange]
    source: ShardChanges | None = Field(description="Shards of the input; None where a run read none.")
    accounts: list[Account]
    routes: list[Changed]
    corpus: CorpusChange | None = Field(None, description="None where a side has none.")
    corpus_note: str = ""
