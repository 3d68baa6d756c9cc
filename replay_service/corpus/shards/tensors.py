"""Tensors in the columns of tables: Arrow's own, or lists of numbers in one another."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


def is_list(type_: pa.DataType) -> bool:
    return any(is_kind(type_) for is_kind in LISTS)


def tensors_of(column: pa.Array) -> list[Any]:
    """The value of each row: a numpy array where it holds numbers in one shape, else what Python makes of it."""
    if isinstance(column.type, pa.FixedShapeTensorType):
        return [each.to_numpy() if each.is_valid else None for each in column]
    if not is_list(column.type):
        values: list[Any] = column.to_pylist()
        return values
    if not column.null_count and isinstance(tensors := _tensor(column), np.ndarray):
        return list(tensors)
    return [_tensor(each.values) if each.is_valid else None for each in column]


def _tensor(values: pa.Array) -> NDArray[Any] | list[Any]:
    """Numbers, or lists of them that are all of one shape, as an array whose first axis is that of `values`."""
    if not is_list(values.type):
        is_number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
        found: NDArray[Any] | list[Any] = (
            values.to_numpy(zero_copy_only=False) if is_number and not values.null_count else values.to_pylist()
        )
        return found
    widths = pc.unique(pc.list_value_length(values)).to_pylist()
    inner = _tensor(values.flatten()) if len(widths) == 1 and widths[0] else None
    if isinstance(inner, np.ndarray):
        return inner.reshape(len(values), widths[0], *inner.shape[1:])
    lists: list[Any] = values.to_pylist()
    return lists
