"""Rows of samples in memory, one fixed-width record each, and as Arrow columns of one width."""

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]

Kind = Literal["language", "classification"]
"""What the samples of a corpus are: tokens, of which each is predicted from those before it; or a text or a tensor with
a label, of which the label is predicted."""

FIELD_NAMES: Final = (
    "input_ids",
    "length",
    "base_loss",
    "base_correct",
    "stratum",
    "topk_ids",
    "topk_logprobs",
    "inputs",
    "label",
)
"""The fields that a record may have. Samples to classify have a `label`, and `inputs` unless they are text."""


class SampleRows:
    """Samples of a corpus, a record each: all fields of a sample lie beside one another, as in a segment file.

    A field of all rows is a view of the records, so it is not contiguous. Of a row of tokens there are S = seq_len - 1
    predictions, of a sample to classify there is one.
    """

    __slots__ = ("records",)

    records: NDArray[np.void]
    """Structured array [n]."""

    def __init__(
        self,
        *,
        length: NDArray[np.int32],
        base_loss: NDArray[np.float32],
        base_correct: NDArray[np.uint8],
        stratum: NDArray[np.int32],
        input_ids: NDArray[np.unsignedinteger] | None = None,
        topk_ids: NDArray[np.unsignedinteger] | None = None,
        topk_logprobs: NDArray[np.float16] | None = None,
        inputs: NDArray[Any] | None = None,
        label: NDArray[np.int32] | None = None,
    ) -> None:
        """Copies of arrays with one row a sample; the properties of the same names say what stands in them."""
        columns = (input_ids, length, base_loss, base_correct, stratum, topk_ids, topk_logprobs, inputs, label)
        present = {name: column for name, column in zip(FIELD_NAMES, columns, strict=True) if column is not None}
        self.records = np.zeros(len(length), record_type(present))
        for name, column in present.items():
            self.records[name] = column

    @classmethod
    def of_records(cls, records: NDArray[np.void]) -> "SampleRows":
        """The samples of a structured array with the fields that `record_type` gives, without a copy."""
        rows = cls.__new__(cls)
        rows.records = records
        return rows

    @classmethod
    def from_arrow(cls, batch: pa.RecordBatch) -> "SampleRows":
        """Copies of a batch's columns, one a field: fixed-size lists, fixed-size binaries, and numbers."""
        return cls(**{name: _numpy_column(batch.column(name)) for name in FIELD_NAMES if name in batch.schema.names})

    @classmethod
    def concatenate(cls, parts: "list[SampleRows]") -> "SampleRows":
        """All rows of `parts`, at least one, which have the same fields."""
        record = parts[0].records.dtype
        # As bytes: of structured arrays, numpy would not copy the padding.
        every = np.concatenate([part.records.view(f"V{record.itemsize}") for part in parts])
        return cls.of_records(every.view(record))

    @property
    def input_ids(self) -> NDArray[np.unsignedinteger]:
        """[n, seq_len], narrowest unsigned type; padding beyond the length means nothing. [n, 0] where there are
        `inputs`, which are no text."""
        ids = self._kept("input_ids")
        return np.empty((len(self), 0), dtype=np.uint8) if ids is None else ids

    @property
    def length(self) -> NDArray[np.int32]:
        """int32 [n], real tokens, or 1 where there are `inputs`; 0 for a sample that could not be read, whose other
        fields are 0 too."""
        return self.records["length"]

    @property
    def base_loss(self) -> NDArray[np.float32]:
        """float32 [n], nats per prediction."""
        return self.records["base_loss"]

    @property
    def base_correct(self) -> NDArray[np.uint8]:
        """uint8 [n, ceil(seq_len / 8)], packed bits, least significant first: bit t says that the base model's argmax
        predicted token t; bit 0 is never set. With a label uint8 [n, 1]: bit 0 says that it predicted the label."""
        return self.records["base_correct"]

    @property
    def stratum(self) -> NDArray[np.int32]:
        """int32 [n]."""
        return self.records["stratum"]

    @property
    def topk_ids(self) -> NDArray[np.unsignedinteger] | None:
        """[n, S, k], narrowest unsigned type: the base model's k likeliest tokens for each prediction, if kept."""
        return self._kept("topk_ids")

    @property
    def topk_logprobs(self) -> NDArray[np.float16] | None:
        """float16 [n, S, k], nats: the log-probabilities of those tokens."""
        return self._kept("topk_logprobs")

    @property
    def inputs(self) -> NDArray[Any] | None:
        """[n, ...], numbers of any type: what a model classifies, if it is no text."""
        return self._kept("inputs")

    @property
    def label(self) -> NDArray[np.int32] | None:
        """int32 [n], the class of each sample; None in a language corpus."""
        return self._kept("label")

    def __len__(self) -> int:
        return len(self.records)

    def take(self, index: Int64Array) -> "SampleRows":
        return SampleRows.of_records(self.records.take(index))

    def columns(self) -> dict[str, NDArray[Any]]:
        """The fields that there are, by name."""
        columns = {name: self._kept(name) for name in FIELD_NAMES}
        return {name: column for name, column in columns.items() if column is not None}

    def _kept(self, name: str) -> NDArray[Any] | None:
        return self.records[name] if name in (self.records.dtype.names or ()) else None


@dataclass(frozen=True, slots=True)
class SampleColumns:
    """Samples of a corpus, a column each, of the same shapes and types as the properties of SampleRows. Columns of wide
    rows are contiguous."""

    length: NDArray[np.int32]
    base_loss: NDArray[np.float32]
    base_correct: NDArray[np.uint8]
    stratum: NDArray[np.int32]
    input_ids: NDArray[np.unsignedinteger]
    topk_ids: NDArray[np.unsignedinteger] | None = None
    topk_logprobs: NDArray[np.float16] | None = None
    inputs: NDArray[Any] | None = None
    label: NDArray[np.int32] | None = None


def record_type(columns: dict[str, NDArray[Any]]) -> np.dtype[np.void]:
    """The record that holds a row of each column.

    Each field is aligned to the size of its numbers. Wide numbers come first, so that at most the record's end is
    padding.
    """
    by_width = sorted(columns.items(), key=lambda column: -column[1].dtype.itemsize)
    return np.dtype([(name, column.dtype, column.shape[1:]) for name, column in by_width], align=True)


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


def _numpy_column(column: pa.Array) -> NDArray[Any]:
    if pa.types.is_fixed_size_binary(column.type):
        return binary_rows(column)
    return list_rows(column)
