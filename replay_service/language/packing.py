"""Documents in, rows of one width out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ids = Sequence[int] | NDArray[np.int64]
"""Token ids of one document, or of a part of one."""

IdArray = NDArray[np.unsignedinteger]

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


Bos = Literal["auto", "never", "always"]
"""Whether documents begin with the tokenizer's bos token; `auto` does what the tokenizer does with a text."""


@dataclass(frozen=True, slots=True)
class Ends:
    """The tokens around each document."""

    separator_id: int
    """Ends a document."""
    bos_id: int | None = None
    """Begins a document, and a row that goes on with one; None: nothing does."""


class Packer:
    """Lays documents end to end, each closed by the separator, and cuts the line into rows of `seq_len` tokens.

    Every token of a document stands in exactly one row, in order. The last row is padded with the separator; a
    remainder of a single token, which could only be the last separator, is left off, since a row of one token predicts
    nothing.

    With a bos token, each document begins with one, unless it has one there already. So does each row that goes on with
    a document: models that are trained with the token give nonsense for rows without it.

    A document may come in parts, and the rows are those of the whole document. At most one row of tokens is held back,
    so that memory does not depend on the length of a document.
    """

    def __init__(self, seq_len: int, ends: Ends, dtype: np.dtype) -> None:
        self._seq_len = seq_len
        self._ends = ends
        self._line = _Line(ends, dtype)
        self._rest = np.empty(0, dtype=dtype)

    def add(self, documents: Sequence[Ids], are_ended: Sequence[bool] | None = None) -> PackedRows:
        """The rows that these documents, after those before, fill.

        Args:
            documents: token ids of each document, or of each part of one.
            are_ended: whether each ends its document; the next one goes on with a document that is not ended. All end
                by default.
        """
        line = np.concatenate([self._rest, self._line.add(documents, are_ended or [True] * len(documents))])
        bos_id = self._ends.bos_id
        rows, num_used = self._cut(line) if bos_id is None else self._cut_with_bos(line, bos_id)
        self._rest = line[num_used:]
        return PackedRows(rows, np.full(len(rows), self._seq_len, dtype=np.int32))

    def finish(self) -> PackedRows:
        """The last row, or none; documents after it begin a new line."""
        rest, self._rest = self._rest, self._rest[:0]
        num_rows = int(len(rest) >= MIN_LENGTH)
        if num_rows and self._ends.bos_id is not None and rest[0] != self._ends.bos_id:
            rest = np.insert(rest, 0, self._ends.bos_id)
        row = np.full(self._seq_len, self._ends.separator_id, dtype=rest.dtype)
        row[: len(rest)] = rest
        length = np.full(num_rows, len(rest), dtype=np.int32)
        return PackedRows(row.reshape(1, self._seq_len)[:num_rows], length)

    def _cut(self, line: IdArray) -> tuple[IdArray, int]:
        """Full rows, and how many tokens of the line stand in them."""
        num_rows = len(line) // self._seq_len
        num_used = num_rows * self._seq_len
        return line[:num_used].reshape(num_rows, self._seq_len), num_used

    def _cut_with_bos(self, line: IdArray, bos_id: int) -> tuple[IdArray, int]:
        rows = []
        first = 0
        while first < len(line):
            missing = int(line[first] != bos_id)
            if first + self._seq_len - missing > len(line):
                break
            row = np.full(self._seq_len, bos_id, dtype=line.dtype)
            row[missing:] = line[first : first + self._seq_len - missing]
            rows.append(row)
            first += self._seq_len - missing
        return np.array(rows, dtype=line.dtype).reshape(len(rows), self._seq_len), first


class _Line:
    """Documents that lie end to end, with the tokens around each."""

    def __init__(self, ends: Ends, dtype: np.dtype) -> None:
        self._ends = ends
        self._dtype = dtype
        self._is_begun = False
        """Whether the line ends within a document."""

    def add(self, parts: Sequence[Ids], are_ended: Sequence[bool]) -> IdArray:
        """What some parts of documents add to the line, [tokens]."""
        line = np.empty(sum(map(len, parts)) + 2 * len(parts), dtype=self._dtype)
        stop = 0
        for part, is_ended in zip(parts, are_ended, strict=True):
            if not self._is_begun and self._lacks_bos(part, is_ended):
                line[stop] = self._ends.bos_id
                stop += 1
            line[stop : stop + len(part)] = part
            stop += len(part)
            if is_ended:
                line[stop] = self._ends.separator_id
                stop += 1
            self._is_begun = not is_ended and (self._is_begun or len(part) > 0)
        return line[:stop]

    def _lacks_bos(self, part: Ids, is_ended: bool) -> bool:
        """Whether a bos token comes before the first part of a document; after an empty part the next one tells.

        A separator that is the bos token, too, begins the document after it.
        """
        if self._ends.bos_id in (None, self._ends.separator_id):
            return False
        return bool(part[0] != self._ends.bos_id) if len(part) else is_ended


def laid_out(documents: Sequence[Ids], ends: Ends, dtype: np.dtype) -> IdArray:
    """The line of documents that lie end to end, with the tokens around each, [tokens]."""
    return _Line(ends, dtype).add(documents, [True] * len(documents))


def pack(documents: Iterable[Ids], seq_len: int, ends: Ends, dtype: np.dtype) -> PackedRows:
    """All rows of some documents, as a `Packer` makes them."""
    packer = Packer(seq_len, ends, dtype)
    parts = [packer.add(list(documents)), packer.finish()]
    return PackedRows(
        np.concatenate([each.input_ids for each in parts]), np.concatenate([each.length for each in parts])
    )
