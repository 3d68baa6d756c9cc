"""Documents in, rows of one width out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_LENGTH = 2
"""A row of fewer tokens predicts nothing."""


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Token ids of equal-width rows; what lies beyond a row's length is padding and means nothing."""

    input_ids: NDArray[np.unsignedinteger]
    """[num_rows, seq_len], the narrowest unsigned type that holds the vocabulary."""
    length: NDArray[np.int32]
    """int32 [num_rows]: how many tokens of each row are real; all but the last row are full."""

    def __len__(self) -> int:
        return len(self.length)


def id_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The narrowest unsigned integer type that holds every token id."""
    return np.min_scalar_type(vocab_size - 1)


def pack(documents: Iterable[Sequence[int]], seq_len: int, separator: int, dtype: np.dtype) -> PackedRows:
    """Lay documents end to end, each closed by `separator`, and cut the line into rows of `seq_len` tokens.

    Every token stands in exactly one row, in order. The last row is padded with `separator`; a remainder of a single
    token, which could only be the last separator, is left off, since a row of one token predicts nothing.
    """
    tokens = _line(list(documents), separator, dtype)
    if len(tokens) % seq_len < MIN_LENGTH:
        tokens = tokens[: len(tokens) - len(tokens) % seq_len]
    num_rows = -(-len(tokens) // seq_len)
    input_ids = np.full(num_rows * seq_len, separator, dtype=dtype)
    input_ids[: len(tokens)] = tokens
    length = np.full(num_rows, seq_len, dtype=np.int32)
    if num_rows:
        length[-1] = len(tokens) - (num_rows - 1) * seq_len
    return PackedRows(input_ids.reshape(num_rows, seq_len), length)


def _line(documents: list[Sequence[int]], separator: int, dtype: np.dtype) -> NDArray[np.unsignedinteger]:
    tokens = np.full(sum(map(len, documents)) + len(documents), separator, dtype=dtype)
    first = 0
    for document in documents:
        tokens[first : first + len(document)] = document
        first += len(document) + 1
    return tokens
