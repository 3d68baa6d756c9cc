"""The columns of JSON lines: a type for each that all of its values have, or JSON as text where there is none."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from replay_trainer.errors import InvalidTraining

_REFUSED: Final = (ValueError, TypeError, OverflowError, pa.ArrowException)
"""What Arrow raises for values that no type of its own holds."""

_EXACT: Final = 1 << 53
"""Larger whole numbers are not all numbers of 64 bits with a fraction."""

Rows = Sequence[Mapping[str, Any]]


class JsonColumns:
    """The types of the columns of all rows that were added.

    Args:
        texts: columns of text, whose other values are left out.
    """

    def __init__(self, texts: Collection[str] = ()) -> None:
        self._texts = texts
        self._types: dict[str, pa.DataType | None] = {}
        self._wide: set[str] = set()
        self._with_text: set[str] = set()

    def add(self, rows: Rows) -> None:
        """Look at some rows, which may lack any column."""
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [row.get(name) for row in rows]
            self._types[name] = _common(self._types.get(name, pa.null()), _type_of(values))
            if name in self._texts and any(isinstance(value, str) for value in values):
                self._with_text.add(name)
            if any(map(_has_wide, values)):
                self._wide.add(name)

    def schema(self) -> pa.Schema:
        return pa.schema([(_column_name(name), self._type(name) or pa.string()) for name in self._types])

    def as_json(self) -> list[str]:
        """The columns that are JSON as text."""
        return [_column_name(name) for name in self._types if self._type(name) is None]

    @staticmethod
    def batch(
        rows: Rows, schema: pa.Schema, as_json: Collection[str], place_of: Callable[[int], str]
    ) -> pa.RecordBatch:
        """Some rows in the columns of a schema.

        Raises:
            InvalidTraining: when a value is not of its column's type; `place_of` names the row at an index.
        """
        named = [{_column_name(name): value for name, value in row.items()} for row in rows]
        columns = []
        for each in schema:
            values = [row.get(each.name) for row in named]
            if each.name in as_json:
                values = [None if value is None else json.dumps(value) for value in values]
            elif pa.types.is_string(each.type):
                values = [_encodable(value) for value in values]
            columns.append(_column(values, each, place_of))
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def _type(self, name: str) -> pa.DataType | None:
        if name in self._with_text:
            return pa.string()
        found = self._types[name]
        is_rounded = found is not None and _has_floating(found) and name in self._wide
        return None if is_rounded else found


def _type_of(values: list[Any]) -> pa.DataType | None:
    """None where Arrow, or a Parquet file, has no type for them."""
    are_integers = all(value is None or type(value) is int for value in values)
    for wanted in (None, pa.uint64()) if are_integers else (None,):
        try:
            found = pa.array(values, wanted).type
        except _REFUSED:
            continue
        return None if _has_empty_struct(found) else found
    return None


def _common(one: pa.DataType | None, other: pa.DataType | None) -> pa.DataType | None:
    if one is None or other is None or {one, other} == {pa.int64(), pa.uint64()}:
        return None
    schemas = [pa.schema([("", each)]) for each in (one, other)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def _has_empty_struct(type_: pa.DataType) -> bool:
    inner = [type_.field(i).type for i in range(type_.num_fields)]
    return (pa.types.is_struct(type_) and not inner) or any(map(_has_empty_struct, inner))


def _has_floating(type_: pa.DataType) -> bool:
    return pa.types.is_floating(type_) or any(_has_floating(type_.field(i).type) for i in range(type_.num_fields))


def _has_wide(value: Any) -> bool:
    """Whether a whole number stands in a value that not every number of 64 bits with a fraction is."""
    if isinstance(value, list | dict):
        return any(map(_has_wide, value.values() if isinstance(value, dict) else value))
    return type(value) is int and abs(value) > _EXACT


def _column_name(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


def _encodable(value: Any) -> str | None:
    """A text; None for what is none, and for half a surrogate pair."""
    try:
        return value if isinstance(value, str) and value.encode() is not None else None
    except UnicodeEncodeError:
        return None


def _column(values: list[Any], field: pa.Field, place_of: Callable[[int], str]) -> pa.Array:
    try:
        return pa.array(values, field.type)
    except _REFUSED:
        for index, value in enumerate(values):
            try:
                pa.array([value], field.type)
            except _REFUSED as error:
                raise InvalidTraining(
                    f"{place_of(index)}: column {field.name!r} cannot be kept as {field.type}: {error}"
                ) from error
        raise
