"""Documents in, rows of one width out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = Sequence[int] | NDArray[np.int64]
"""Token ids of one document."""

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


class Packer:
    """Lays documents end to end, each closed by `separator`, and cuts the line into rows of `seq_len` tokens.

    Every token stands in exactly one row, in order. The last row is padded with `separator`; a remainder of a single
    token, which could only be the last separator, is left off, since a row of one token predicts nothing.
    """

    def __init__(self, seq_len: int, separator: int, dtype: np.dtype) -> None:
        self._seq_len = seq_len
        self._separator = separator
        self._rest = np.empty(0, dtype=dtype)

    def add(self, documents: Sequence[Ids]) -> PackedRows:
        """The rows that these documents, after those before, fill."""
        line = self._line(documents)
        num_rows = len(line) // self._seq_len
        full, self._rest = line[: num_rows * self._seq_len], line[num_rows * self._seq_len :]
        length = np.full(num_rows, self._seq_len, dtype=np.int32)
        return PackedRows(full.reshape(num_rows, self._seq_len), length)

    def finish(self) -> PackedRows:
        """The last row, or none; documents after it begin a new line."""
        rest, self._rest = self._rest, self._rest[:0]
        num_rows = int(len(rest) >= MIN_LENGTH)
        row = np.full(self._seq_len, self._separator, dtype=rest.dtype)
        row[: len(rest)] = rest
        length = np.full(num_rows, len(rest), dtype=np.int32)
        return PackedRows(row.reshape(1, self._seq_len)[:num_rows], length)

    def _line(self, documents: Sequence[Ids]) -> NDArray[np.unsignedinteger]:
        """What is left of the documents before, and the new ones."""
        num_tokens = len(self._rest) + sum(map(len, documents)) + len(documents)
        line = np.full(num_tokens, self._separator, dtype=self._rest.dtype)
        line[: len(self._rest)] = self._rest
        first = len(self._rest)
        for document in documents:
            line[first : first + len(document)] = document
            first += len(document) + 1
        return line


def pack(documents: Iterable[Ids], seq_len: int, separator: int, dtype: np.dtype) -> PackedRows:
    """All rows of some documents, as a `Packer` makes them."""
    packer = Packer(seq_len, separator, dtype)
    parts = [packer.add(list(documents)), packer.finish()]
    return PackedRows(
        np.concatenate([each.input_ids for each in parts]), np.concatenate([each.length for each in parts])
    )
