"""Rows of samples in memory, and as Arrow columns of one width."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SampleRows:
    """Samples of a corpus; every array has one row a sample. S = seq_len - 1 predictions a row."""

    input_ids: NDArray[np.unsignedinteger]
    """[n, seq_len], narrowest unsigned type; padding beyond the length means nothing."""
    length: NDArray[np.int32]
    """int32 [n], real tokens; 0 for a sample that could not be read, whose other columns are 0 too."""
    base_loss: NDArray[np.float32]
    """float32 [n], nats per predicted token."""
    base_correct: NDArray[np.uint8]
    """uint8 [n, ceil(seq_len / 8)], packed bits, least significant first: bit t says that the base model's argmax
    predicted token t; bit 0 is never set."""
    stratum: NDArray[np.int32]
    """int32 [n]."""
    topk_ids: NDArray[np.unsignedinteger] | None = None
    """[n, S, k], narrowest unsigned type: the base model's k likeliest tokens for each prediction, if they are kept."""
    topk_logprobs: NDArray[np.float16] | None = None
    """float16 [n, S, k], nats: the log-probabilities of those tokens."""

    def __len__(self) -> int:
        return len(self.length)

    def take(self, index: Int64Array) -> "SampleRows":
        return SampleRows(**{name: column.take(index, axis=0) for name, column in self.columns().items()})

    def in_strata(self, stratum: NDArray[np.int32]) -> "SampleRows":
        return replace(self, stratum=stratum)

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns that there are, by name."""
        columns = {name: getattr(self, name) for name in COLUMN_NAMES}
        return {name: column for name, column in columns.items() if column is not None}

    @classmethod
    def concatenate(cls, parts: "list[SampleRows]") -> "SampleRows":
        """All rows of `parts`, at least one, which have the same columns."""
        columns = [part.columns() for part in parts]
        return cls(**{name: np.concatenate([each[name] for each in columns]) for name in columns[0]})

    def to_arrow(self) -> pa.RecordBatch:
        """One column a field; wide fields are fixed-size lists and fixed-size binaries, without a copy."""
        return pa.record_batch({name: _arrow_column(name, column) for name, column in self.columns().items()})

    @classmethod
    def from_arrow(cls, batch: pa.RecordBatch) -> "SampleRows":
        """Views of the batch's own memory."""
        names = [name for name in COLUMN_NAMES if name in batch.schema.names]
        return cls(**{name: _numpy_column(batch.column(name)) for name in names})


COLUMN_NAMES: Final = tuple(field.name for field in fields(SampleRows))


def gather(file: Int64Array, row: Int64Array, rows_of: Callable[[int], SampleRows]) -> SampleRows:
    """The rows at (file, row), int64 [n] each and n at least 1, in the order given; `rows_of` opens a file."""
    order = np.argsort(file, kind="stable")
    numbers, first = np.unique(file[order], return_index=True)
    chosen = np.split(order, first[1:])
    parts = [rows_of(int(number)).take(row[index]) for number, index in zip(numbers, chosen, strict=True)]
    return SampleRows.concatenate(parts).take(np.argsort(order))


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
    width = column.type.byte_width
    every = np.frombuffer(column.buffers()[1], dtype=np.uint8)
    return every[column.offset * width : (column.offset + len(column)) * width].reshape(len(column), width)


def _arrow_column(name: str, column: NDArray[Any]) -> pa.Array:
    if name == "base_correct":
        return wide_binary(column)
    return pa.array(column) if column.ndim == 1 else wide_list(column)


def _numpy_column(column: pa.Array) -> NDArray[Any]:
    if pa.types.is_fixed_size_binary(column.type):
        return binary_rows(column)
    return list_rows(column)
