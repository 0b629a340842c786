"""The operator contract: what an annotator and a rewriter are, and how they are identified.

An operator *is* its frozen configuration. Fields that change its output are ordinary pydantic fields
and enter its fingerprint; fields that only say how it is carried out (batch size of an exact operator,
cpus, gpus) are declared with :func:`execution` and do not. A field that names a model or a data
package is declared with :func:`model_reference`: the content hash of what it names enters the fingerprint in
its place, so a model that moves to another folder is still the same model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from operators.language.engine import Completion, Request

FINGERPRINT_LENGTH = 12
_EXECUTION = "winnow_execution"
_MODEL = "winnow_model"


def execution(default: Any, **kwargs: Any) -> Any:
    """A field that says how work is carried out and never what comes out: it has no part in the fingerprint."""
    return Field(default, json_schema_extra={_EXECUTION: True}, **kwargs)


def model_reference(default: Any = ..., **kwargs: Any) -> Any:
    """A field that names a model or a data package; its content hash stands for it in the fingerprint."""
    return Field(default, json_schema_extra={_MODEL: True}, **kwargs)


class Resources(BaseModel):
    """What one worker of an operator wants: logical cores, GPUs, and heap in bytes (0 = not declared)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(0.0, ge=0)
    memory_bytes: int = Field(0, ge=0)


class Operator(BaseModel):
    """What every operator has in common; write a subclass of :class:`Annotator` or :class:`Rewriter` instead.

    ``version`` changes whenever the output for the same input changes: a golden-output test holds that.
    ``reads`` names the columns of the input table; a row in which one of them is null never reaches the
    operator, its place is kept by the runner with nulls and a reason. ``adds`` is the schema of what comes out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(pa.Schema,))

    version: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]
    adds: ClassVar[pa.Schema]

    @property
    def resources(self) -> Resources:
        return Resources()

    def models(self) -> dict[str, str]:
        """Model field -> reference, in field order. Resolved to local folders before ``setup`` is called."""
        return {
            name: value
            for name, field in type(self).model_fields.items()
            if _marked(field, _MODEL) and (value := getattr(self, name)) is not None
        }

    def setup(self, models: Mapping[str, Path]) -> None:
        """Called once in each worker before the first row. ``models``: model field -> local folder or file.

        The only place where an operator may read files or hold state (private attributes).
        """

    def identity(self) -> dict[str, Any]:
        """Everything of the configuration that can change the output, apart from the models' content."""
        fields = type(self).model_fields
        left_out = {n for n, f in fields.items() if _marked(f, _EXECUTION) or _marked(f, _MODEL)}
        return {
            "operator": type(self).__name__,
            "version": self.version,
            "config": self.model_dump(mode="json", exclude=left_out),
        }


class Annotator(Operator):
    """Adds columns to rows. ``__call__`` takes a table with the columns in ``reads`` and returns one with exactly
    the columns in ``adds``, row for row in the same order, plus, where a row could not be done, a ``reason``
    column (string, null where the row is fine). A row with a reason is quarantined under it.

    ``exact``: a row's result is the same in any batch, so ``batch_size`` is execution only. An operator
    that is not exact states its ``tolerance`` (largest difference seen), and its batch size becomes identity.
    """

    exact: ClassVar[bool] = True
    tolerance: ClassVar[float] = 0.0

    batch_size: int = execution(1024, ge=1, description="Rows given to the operator at once.")

    def __call__(self, table: pa.Table) -> pa.Table:
        raise TypeError(f"{type(self).__name__} must define __call__(table) -> table")

    def identity(self) -> dict[str, Any]:
        identity = super().identity()
        if not self.exact:
            identity["config"]["batch_size"] = self.batch_size
        return identity


class Rewriter(Operator):
    """Makes new rows from a row through a language engine, as two pure functions.

    ``requests`` turns a row (the columns in ``reads`` and ``id``) into the requests that it needs, each with its
    ``part`` number; ``parse`` turns the completions that came back (a sampled run holds only some of the
    parts) into new rows: dictionaries with the columns in ``adds``. A row that a gate refuses is
    returned too, with ``reason`` set, so that it is counted and can be read later.
    """

    def requests(self, row: Mapping[str, Any]) -> list[Request]:
        raise TypeError(f"{type(self).__name__} must define requests(row)")

    def parse(self, row: Mapping[str, Any], completions: Sequence[tuple[Request, Completion]]) -> list[dict[str, Any]]:
        raise TypeError(f"{type(self).__name__} must define parse(row, completions)")

    def row_id(self, parent_id: str, row: Mapping[str, Any]) -> str:
        """The id of a new row: unique among the rows made from one parent."""
        raise TypeError(f"{type(self).__name__} must define row_id(parent_id, row)")


def fingerprint(*parts: Any) -> str:
    """First 12 hex digits of the SHA-256 of the parts' canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_LENGTH]


def uniform(seed: int, *names: str | int) -> float:
    """A number in [0, 1) drawn from (run seed, row id, ...): the same on every machine, in every order.

    The first 53 bits of BLAKE2b over the length-prefixed names, so ("a", "bc") and ("ab", "c") differ.
    """
    return (_digest(seed, names) >> 11) / float(1 << 53)


def uniforms(seed: int, *names: str | int, last: Iterable[str]) -> npt.NDArray[np.float64]:
    """``uniform(seed, *names, one)`` for each of ``last``, float64 [n], several times as fast."""
    before = b"".join(map(_framed, (seed, *names)))
    digest = b"".join(hashlib.blake2b(before + _framed(one), digest_size=8).digest() for one in last)
    return (np.frombuffer(digest, ">u8") >> np.uint64(11)) / float(1 << 53)


def row_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for a generator, drawn from (run seed, row id, ...)."""
    return _digest(seed, names) >> 1


def _digest(seed: int, names: Iterable[str | int]) -> int:
    state = hashlib.blake2b(digest_size=8)
    for name in (seed, *names):
        state.update(_framed(name))
    return int.from_bytes(state.digest(), "big")


def _framed(name: str | int) -> bytes:
    raw = str(name).encode("utf-8", "surrogatepass")
    return len(raw).to_bytes(8, "little") + raw


def _marked(field: Any, mark: str) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get(mark))
