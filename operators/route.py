"""A decision over annotations: which way each row goes. Late and cheap, so a new threshold costs no model run."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from operators.base import Annotator

_OWN = ("route", "route_reason")
_OVER_MANY_ROWS = frozenset(
    "Agg Over Window Rolling Len Sort SortBy Gather Filter Slice Explode Range Rank CumSum CumCount CumMin CumMax "
    "CumProd Shift Diff PctChange FillNullWithStrategy Quantile Mode Unique".split()
)
"""Parts of a Polars expression that look at more rows than one."""


class Route(Annotator):
    """Adds ``route`` and ``route_reason``. The first of ``routes`` (name, SQL condition) that a row meets is its route.

    Conditions are Polars SQL over annotation columns, such as ``lang = 'en' AND harm_score <= 1``; a condition that
    comes out null is not met. The reason is the condition, or, where none is met and the route is ``otherwise``, a
    short reading of the columns: ``harm_score=5, lang=en``. Bad SQL raises a one-line ValueError when the operator
    is made.
    """

    version: ClassVar[str] = "1"
    adds: ClassVar[pa.Schema] = pa.schema([("route", pa.string()), ("route_reason", pa.string())])

    routes: tuple[tuple[str, str], ...] = Field(
        min_length=1, description="(name, SQL condition) in order; the first met wins."
    )
    otherwise: str = Field("drop", description="Route of a row that meets none.")

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The columns that the conditions name, sorted. Of the configuration, not of the class, unlike elsewhere."""
        return self.columns()

    def columns(self) -> tuple[str, ...]:
        return tuple(sorted({name for _, sql in self.routes for name in _parsed(sql).meta.root_names()}))

    @model_validator(mode="after")
    def _conditions_parse(self) -> Self:
        for name, sql in self.routes:
            named = _parsed(sql).meta.root_names()
            if not name:
                raise ValueError(f"the condition {sql!r} has no route name; give it one")
            if not named:
                raise ValueError(f"route {name!r}: {sql!r} names no column; write a condition over columns")
            if over := _over_many_rows(json.loads(_parsed(sql).meta.serialize(format="json"))):
                raise ValueError(
                    f"route {name!r}: {sql!r} looks at other rows ({over}), so batches would change it; "
                    "write a condition on one row, with the number itself as its threshold"
                )
            if bad := sorted(set(named) & set(_OWN)):
                raise ValueError(f"route {name!r}: {bad[0]} is what routing makes; use the columns it is made from")
        return self

    def check(self, schema: pa.Schema) -> None:
        """Raises ValueError where a condition names a column that ``schema`` lacks, or is no condition on its types."""
        for name, sql in self.routes:
            for column in _parsed(sql).meta.root_names():
                if column not in schema.names:
                    known = ", ".join(schema.names)
                    raise ValueError(f"route {name!r}: there is no column {column!r} in {sql!r}; there are {known}")
        empty = pl.DataFrame(pl.from_arrow(schema.empty_table().select(list(self.columns()))))
        self._met(empty)

    def __call__(self, table: pa.Table) -> pa.Table:
        columns = self.columns()
        frame = pl.DataFrame(pl.from_arrow(table.select(list(columns))))
        taken = np.full(table.num_rows, len(self.routes), np.int64)
        for number, condition in reversed(list(enumerate(self._met(frame)))):
            taken[condition] = number  # the first that is met is the last to be written
        routes = pa.array([*(name for name, _ in self.routes), self.otherwise], pa.string()).take(pa.array(taken))
        rest = taken == len(self.routes)
        values = frame.filter(pl.Series(rest)).iter_rows()
        read = [", ".join(f"{one}={_short(value)}" for one, value in zip(columns, row, strict=True)) for row in values]
        reasons = pa.array([*(sql for _, sql in self.routes), None], pa.string()).take(pa.array(taken))
        reasons = pc.replace_with_mask(reasons, pa.array(rest), pa.array(read, pa.string()))
        return pa.table([routes, reasons], schema=self.adds)

    def _met(self, frame: pl.DataFrame) -> list[npt.NDArray[np.bool_]]:
        met = []
        for name, sql in self.routes:
            try:
                values = frame.select(_parsed(sql).alias("met")).get_column("met")
            except pl.exceptions.PolarsError as error:
                raise ValueError(f"route {name!r}: {sql!r} cannot be evaluated: {_one_line(error)}") from error
            if values.dtype not in (pl.Boolean, pl.Null):
                raise ValueError(
                    f"route {name!r}: {sql!r} gives {values.dtype}, no yes or no; compare it with something"
                )
            if len(values) != frame.height:
                raise ValueError(f"route {name!r}: {sql!r} does not give one answer per row; leave out aggregates")
            met.append(values.cast(pl.Boolean).fill_null(False).to_numpy())
        return met


def _parsed(sql: str) -> pl.Expr:
    try:
        return pl.sql_expr(sql)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{sql!r} is no SQL condition: {_one_line(error)}") from error


def _over_many_rows(node: Any) -> str:
    """Name of the first part of a serialised expression that looks at more than its own row, "" where there is none."""
    if isinstance(node, str):
        return node if node in _OVER_MANY_ROWS else ""
    if isinstance(node, dict):
        # a literal is a value, whatever word it holds
        parts = [part for key, value in node.items() if key not in ("Literal", "Column") for part in (key, value)]
    else:
        parts = list(node) if isinstance(node, list) else []
    return next((found for part in parts if (found := _over_many_rows(part))), "")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    text = str(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
