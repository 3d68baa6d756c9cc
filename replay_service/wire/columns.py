"""Arrays [n, ...] as Arrow columns and back, and the types that a column may have."""

from collections.abc import Callable
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

ToArrow = Callable[[NDArray[Any]], pa.Array]


class Column(NamedTuple):
    """How an array of a dataclass travels.

    Attributes:
        fits: whether an Arrow type is the right one.
        to_arrow: makes the Arrow column of an array.
    """

    fits: Callable[[pa.DataType], bool]
    to_arrow: ToArrow = pa.array


def columns_of(kind: type[Any]) -> dict[str, Column]:
    """The fields of a dataclass that travel, by name: those that are annotated with a Column."""
    hints = get_type_hints(kind, include_extras=True)
    found = {
        name: [each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Column)]
        for name, hint in hints.items()
    }
    return {name: each[0] for name, each in found.items() if each}


def wide_list(rows: NDArray[Any]) -> pa.FixedSizeListArray:
    """[n, width, ...] numbers as a column of (nested) fixed-size lists that shares their memory if contiguous."""
    column = pa.array(np.ascontiguousarray(rows).reshape(-1))
    for width in reversed(rows.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, width)
    return column


def wide_binary(rows: NDArray[np.uint8]) -> pa.FixedSizeBinaryArray:
    """[n, width] bytes as a fixed-size binary column that shares their memory when they are contiguous."""
    buffer = pa.py_buffer(np.ascontiguousarray(rows))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(rows.shape[1]), len(rows), [None, buffer])


def list_rows(column: pa.FixedSizeListArray) -> NDArray[Any]:
    """The numbers of (nested) fixed-size lists, [n, width, ...]."""
    shape = [len(column)]
    while pa.types.is_fixed_size_list(column.type):
        shape.append(column.type.list_size)
        column = column.flatten()
    rows: NDArray[Any] = column.to_numpy().reshape(shape)
    return rows


def binary_rows(column: pa.FixedSizeBinaryArray) -> NDArray[np.uint8]:
    """The bytes of a fixed-size binary column, [n, width]."""
    width = column.type.byte_width
    every = np.frombuffer(column.buffers()[1], dtype=np.uint8)
    return every[column.offset * width : (column.offset + len(column)) * width].reshape(len(column), width)


def numbers_of(column: pa.Array) -> NDArray[Any]:
    """The array [n, ...] of a column without nulls: numbers, fixed-size lists of them, or fixed-size binary."""
    if pa.types.is_fixed_size_list(column.type):
        return list_rows(column)
    if pa.types.is_fixed_size_binary(column.type):
        return binary_rows(column)
    numbers: NDArray[Any] = column.to_numpy()
    return numbers


def is_ids(type_: pa.DataType) -> bool:
    """Token ids: lists of one width of unsigned numbers."""
    return bool(pa.types.is_fixed_size_list(type_) and pa.types.is_unsigned_integer(type_.value_type))


def is_tensor(type_: pa.DataType) -> bool:
    """Lists of one width in one another, as deep as they are, of numbers."""
    depth = 0
    while pa.types.is_fixed_size_list(type_):
        type_, depth = type_.value_type, depth + 1
    return depth > 0 and bool(pa.types.is_integer(type_) or pa.types.is_floating(type_))


def is_nested_ids(type_: pa.DataType) -> bool:
    """Lists of lists of unsigned numbers."""
    return _is_nested(type_) and bool(pa.types.is_unsigned_integer(type_.value_type.value_type))


def is_nested_float16(type_: pa.DataType) -> bool:
    """Lists of lists of float16."""
    return _is_nested(type_) and bool(pa.types.is_float16(type_.value_type.value_type))


def _is_nested(type_: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(type_) and pa.types.is_fixed_size_list(type_.value_type))
