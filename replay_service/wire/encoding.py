"""Columns of numbers as Arrow IPC streams.

Where Arrow puts what follows from the columns' types and shapes alone. So it is found once for streams that are alike,
by letting Arrow encode one, and the others are filled in.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay_service.wire.columns import Column, ToArrow
from replay_service.wire.decoding import END

_PART_BYTES: Final = 1 << 16
"""Of an array that is sent from where it is, at least."""
_MOST_TEMPLATES: Final = 1024

_Types = tuple[tuple[str, ToArrow, str, tuple[int, ...], bool], ...]
"""Of each array the name, the maker of its column, type and shape, and whether it is a part of the stream by itself."""


def record_batch(arrays: Mapping[str, NDArray[Any]], table: Mapping[str, Column]) -> pa.RecordBatch:
    """Arrays [n, ...], in the Arrow types that the table gives them; those that it does not have are plain numbers."""
    return pa.record_batch({name: _to_arrow(name, table)(array) for name, array in arrays.items()})


def parts_of_stream(
    arrays: Mapping[str, NDArray[Any]],
    table: Mapping[str, Column],
    metadata: Mapping[bytes, bytes] | None = None,
) -> list[Any]:
    """Arrays [n, ...] as an Arrow IPC stream of one record batch, in parts (memoryviews) that follow one another.

    A large array that is contiguous is a part as it stands; all others are copied once, to their places.

    Args:
        arrays: by name.
        table: the columns that are more than plain numbers, by name.
        metadata: one key and its value, for the schema; or nothing.
    """
    types = tuple(
        (name, _to_arrow(name, table), array.dtype.char, array.shape, _is_part(array)) for name, array in arrays.items()
    )
    key, header = next(iter(metadata.items())) if metadata else (b"", b"")
    return _template(types, key, len(header)).filled(header, arrays.values())


def _to_arrow(name: str, table: Mapping[str, Column]) -> ToArrow:
    return table[name].to_arrow if name in table else pa.array


def _is_part(array: NDArray[Any]) -> bool:
    return array.nbytes >= _PART_BYTES and array.flags.c_contiguous


@dataclass(frozen=True, slots=True)
class _Template:
    """What all streams have in common whose arrays have the same types and shapes, and whose headers, the values of
    their metadata, have the same length.

    Attributes:
        fixed: bytes that never change, and where each stretch of them begins.
        header_at: where the header begins.
        arrays: shape, type and beginning of each array; that of a part is where it comes in between.
        num_bytes: how long the stream is without parts.
    """

    fixed: tuple[tuple[int, bytes], ...]
    header_at: int
    arrays: tuple[tuple[tuple[int, ...], str, int, bool], ...]
    num_bytes: int

    def filled(self, header: bytes, arrays: Iterable[NDArray[Any]]) -> list[memoryview]:
        """The stream with this header and these arrays."""
        stream = np.empty(self.num_bytes, dtype=np.uint8).data
        for begin, content in self.fixed:
            stream[begin : begin + len(content)] = content
        stream[self.header_at : self.header_at + len(header)] = header
        parts, end = [], 0
        for (shape, type_, begin, is_part), array in zip(self.arrays, arrays, strict=True):
            if is_part:
                parts += [stream[end:begin], array.reshape(-1).view(np.uint8).data]
                end = begin
            else:
                np.ndarray(shape, type_, stream, begin)[...] = array
        return [*parts, stream[end:]]


@functools.lru_cache(_MOST_TEMPLATES)
def _template(types: _Types, key: bytes, header_length: int) -> _Template:
    """Found by letting Arrow encode as many rows, and looking where it puts the header and the numbers."""
    columns = {name: to_arrow(np.zeros(shape, type_)) for name, to_arrow, type_, shape, _ in types}
    records = pa.record_batch(columns)
    header = b"?" * header_length
    head = (records.schema.with_metadata({key: header}) if header else records.schema).serialize().to_pybytes()
    serialized = records.serialize().to_pybytes()
    message = pa.ipc.read_message(serialized)
    body = pa.ipc.read_record_batch(message, records.schema)
    first, header_at = len(head) + len(serialized) - len(message.body), head.index(header)
    fixed = [(0, head[:header_at]), (header_at + header_length, head[header_at + header_length :])]
    fixed.append((len(head), serialized[: first - len(head)]))
    arrays, end, apart = [], first, 0  # the end of what was placed, with the parts; and how many bytes they are
    for column, (_, _, type_, shape, is_part) in zip(body.columns, types, strict=True):
        num_bytes = np.dtype(type_).itemsize * math.prod(shape)
        begin = first + column.buffers()[-1].address - message.body.address if num_bytes else end
        fixed.append((end - apart, bytes(begin - end)))
        arrays.append((shape, type_, begin - apart, is_part))
        end, apart = begin + num_bytes, apart + num_bytes * is_part
    whole = len(head) + len(serialized)
    fixed.append((end - apart, bytes(whole - end) + END))
    stretches = tuple(each for each in fixed if each[1])
    return _Template(stretches, header_at, tuple(arrays), whole - apart + len(END))
