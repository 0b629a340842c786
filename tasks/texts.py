"""Columns of foreign files as text, whatever type they came in."""

from __future__ import annotations

from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

_TEXT_TYPES = {
    *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()),
    pa.null(),  # what pandas writes for a column of nulls
}
_UNSAYABLE = (pa.ArrowException, ValueError, TypeError, KeyError, OverflowError)
"""What Arrow and Python raise for a value that Python has no word for: a time in an unknown zone or in year 20000,
bytes inside a structure that are no UTF-8, two fields of one name."""


def plain(column: pa.Array) -> pa.Array:
    """The column without dictionary and extension type; a UUID is left to :func:`as_text`."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if isinstance(column.type, pa.BaseExtensionType) and column.type.storage_type in _TEXT_TYPES:
        column = column.storage
    return column


def without_views(column: pa.Array) -> pa.Array:
    """The column as Arrow's ``take`` can have it, which knows no views."""
    views = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    return column.cast(views[column.type]) if column.type in views else column


def holds_text(column: pa.Array) -> bool:
    return column.type in _TEXT_TYPES


def decoded(column: pa.Array) -> tuple[pa.Array, dict[int, bytes]]:
    """A column that holds text as valid UTF-8 strings; null where the bytes are none, which come back by row."""
    try:
        strings = pc.cast(column, pa.string())
        strings.validate(full=True)
        return strings, {}
    except pa.ArrowInvalid:
        values: list[str | None] = []
        bad: dict[int, bytes] = {}
        for row, value in enumerate(column.cast(pa.binary()).to_pylist()):
            try:
                values.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                values.append(None)
                bad[row] = value
        return pa.array(values, pa.string()), bad


def as_text(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The column as strings: numbers and times as Arrow writes them, nested values as JSON.

    Null where a value cannot be said as text: bytes that are no UTF-8, a time in an unknown zone.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    column = plain(column)
    if pa.types.is_fixed_size_binary(column.type):
        column = column.cast(pa.binary())
    if holds_text(column):
        return decoded(column)[0]
    # of a UUID Arrow's cast takes the bytes for text
    cast = None if isinstance(column.type, pa.BaseExtensionType) else _cast(column)
    return pa.array([_said(value) for value in column], pa.string()) if cast is None else cast


def _cast(column: pa.Array) -> pa.Array | None:
    try:
        return pc.cast(column, pa.string())
    except pa.ArrowException:
        return None  # then value by value


def _said(scalar: pa.Scalar) -> str | None:
    try:
        value = scalar.as_py()
        return value if value is None or isinstance(value, str) else _json(value)
    except _UNSAYABLE:
        return None


def _json(value: Any) -> str:
    said = orjson.dumps(value, default=_word).decode()
    return str(orjson.loads(said)) if said.startswith('"') else said


def _word(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
