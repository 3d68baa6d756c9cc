"""Which Arrow types the wide columns of a batch have, and how rows of numbers become such columns."""

from collections.abc import Callable
from typing import Final

import pyarrow as pa

from replay_service.corpus.format.segments import wide_binary, wide_list

WIDE: Final = {
    "input_ids": wide_list,
    "base_correct": wide_binary,
    "topk_ids": wide_list,
    "topk_logprobs": wide_list,
    "inputs": wide_list,
}


def is_ids(type_: pa.DataType) -> bool:
    """Token ids: lists of one width of unsigned numbers."""
    return bool(pa.types.is_fixed_size_list(type_) and pa.types.is_unsigned_integer(type_.value_type))


def is_nested(type_: pa.DataType, fits: Callable[[pa.DataType], bool]) -> bool:
    """Lists of lists, of what `fits` says."""
    nested = pa.types.is_fixed_size_list(type_) and pa.types.is_fixed_size_list(type_.value_type)
    return nested and fits(type_.value_type.value_type)


def is_tensor(type_: pa.DataType) -> bool:
    """Lists of one width in one another, as deep as they are, of numbers."""
    depth = 0
    while pa.types.is_fixed_size_list(type_):
        type_, depth = type_.value_type, depth + 1
    return depth > 0 and bool(pa.types.is_integer(type_) or pa.types.is_floating(type_))
