"""Segments: immutable Arrow IPC files of rows of one width, which a reader maps into memory."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class SampleRows:
    """Samples of a corpus; every array has one row a sample."""

    input_ids: NDArray[np.unsignedinteger]
    """[n, seq_len], narrowest unsigned type; padding beyond the length means nothing."""
    length: NDArray[np.int32]
    """int32 [n], real tokens."""
    base_loss: NDArray[np.float32]
    """float32 [n], nats per predicted token."""
    base_correct: NDArray[np.uint8]
    """uint8 [n, ceil(seq_len / 8)], packed bits, least significant first: bit t says that the base model's argmax
    predicted token t; bit 0 is never set."""
    stratum: NDArray[np.int32]
    """int32 [n]."""

    def __len__(self) -> int:
        return len(self.length)

    def take(self, index: NDArray[np.int64]) -> "SampleRows":
        return SampleRows(*(column[index] for column in self.columns()))

    def in_strata(self, stratum: NDArray[np.int32]) -> "SampleRows":
        return replace(self, stratum=stratum)

    def columns(self) -> tuple[NDArray[Any], ...]:
        return self.input_ids, self.length, self.base_loss, self.base_correct, self.stratum

    @classmethod
    def concatenate(cls, parts: "list[SampleRows]") -> "SampleRows":
        return cls(*(np.concatenate(columns) for columns in zip(*(part.columns() for part in parts), strict=True)))

    def to_arrow(self) -> pa.RecordBatch:
        """One column a field; wide fields are fixed-size lists and fixed-size binaries, without a copy."""
        return pa.record_batch(
            {
                "input_ids": wide_list(self.input_ids),
                "length": self.length,
                "base_loss": self.base_loss,
                "base_correct": wide_binary(self.base_correct),
                "stratum": self.stratum,
            }
        )

    @classmethod
    def from_arrow(cls, batch: pa.RecordBatch) -> "SampleRows":
        """Views of the batch's own memory."""
        return cls(
            list_rows(batch.column("input_ids")),
            batch.column("length").to_numpy(),
            batch.column("base_loss").to_numpy(),
            binary_rows(batch.column("base_correct")),
            batch.column("stratum").to_numpy(),
        )


def write_segment(path: Path, rows: SampleRows) -> None:
    """Write rows as one record batch, uncompressed, so that they can be mapped."""
    batch = rows.to_arrow()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def map_segment(path: Path) -> SampleRows:
    """The rows of a segment as views of the mapped file: nothing is read until it is used."""
    with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
        return SampleRows.from_arrow(reader.get_batch(0))


def gather(file: NDArray[np.int64], row: NDArray[np.int64], rows_of: Callable[[int], SampleRows]) -> SampleRows:
    """The rows at (file, row), int64 [n] each and n at least 1, in the order given; `rows_of` opens a file."""
    order = np.argsort(file, kind="stable")
    numbers, first = np.unique(file[order], return_index=True)
    chosen = np.split(order, first[1:])
    parts = [rows_of(int(number)).take(row[index]) for number, index in zip(numbers, chosen, strict=True)]
    return SampleRows.concatenate(parts).take(np.argsort(order))


def wide_list(rows: NDArray[Any]) -> pa.FixedSizeListArray:
    """[n, width] integers as a fixed-size list column that shares their memory when they are contiguous."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def wide_binary(rows: NDArray[np.uint8]) -> pa.FixedSizeBinaryArray:
    """[n, width] bytes as a fixed-size binary column that shares their memory when they are contiguous."""
    buffer = pa.py_buffer(np.ascontiguousarray(rows))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(rows.shape[1]), len(rows), [None, buffer])


def list_rows(column: pa.FixedSizeListArray) -> NDArray[Any]:
    rows: NDArray[Any] = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    return rows


def binary_rows(column: pa.FixedSizeBinaryArray) -> NDArray[np.uint8]:
    width = column.type.byte_width
    every = np.frombuffer(column.buffers()[1], dtype=np.uint8)
    return every[column.offset * width : (column.offset + len(column)) * width].reshape(len(column), width)
