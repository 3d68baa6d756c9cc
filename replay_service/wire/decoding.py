"""Columns of numbers from Arrow IPC streams that anyone may have sent.

A stream is a head, which says of what types the columns are and where their numbers stand, and the numbers. Most
streams have a head that came before, but for the text of a header in it. So heads are remembered, byte by byte, with
what Arrow made of them, and Arrow is asked about new ones only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay_service.wire.columns import numbers_of
from replay_service.wire.ipc_messages import inflated_bytes

END: Final = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""What ends an Arrow stream (Arrow columnar format, "IPC Streaming Format")."""

_MOST_HEADS: Final = 256
_MOST_HEADS_ALIKE: Final = 4
"""Of streams of one length."""
_MOST_HEAD_BYTES: Final = 8 << 10
"""Of a head that is remembered, without its header."""

Wanted = tuple[tuple[str, Callable[[pa.DataType], bool]], ...]
"""Names of columns, each with whether an Arrow type is the right one."""


@dataclass(frozen=True, slots=True)
class _Head:
    """The head of a stream whose columns are nothing but the wanted numbers, in a single record batch.

    Attributes:
        before: its bytes before the text of the header.
        header_bytes: how long that is; 0 where the stream has none.
        after: its bytes behind it.
        names: of the columns.
        wanted: the columns.
        places: of each of them the name, shape, type, and where in the stream it begins.
    """

    before: bytes
    header_bytes: int
    after: bytes
    names: frozenset[str]
    wanted: Wanted
    places: tuple[tuple[str, tuple[int, ...], np.dtype[Any], int], ...]

    def begins(self, body: bytes | memoryview) -> bool:
        """Whether this is the head of a stream, but for its header."""
        end = len(self.before) + self.header_bytes
        return bytes(body[: len(self.before)]) == self.before and bytes(body[end : end + len(self.after)]) == self.after


class Heads:
    """The heads of streams that were decoded before; threads may share them.

    Args:
        most: how many kinds of streams are remembered.
        most_head_bytes: longer heads are not remembered, without their headers.
    """

    def __init__(self, most: int = _MOST_HEADS, most_head_bytes: int = _MOST_HEAD_BYTES) -> None:
        self._most = most
        self._most_head_bytes = most_head_bytes
        self._heads: dict[tuple[bytes, int], tuple[_Head, ...]] = {}

    def __len__(self) -> int:
        return len(self._heads)

    def find(self, header_key: bytes, body: bytes | memoryview) -> _Head | None:
        """The head of a stream, if one like it came before."""
        alike = self._heads.get((header_key, len(body)), ())
        return next((each for each in alike if each.begins(body)), None)

    def add(self, header_key: bytes, num_bytes: int, head: _Head) -> None:
        """Remember the head of a stream of `num_bytes`."""
        if len(head.before) + len(head.after) > self._most_head_bytes:
            return
        if len(self._heads) >= self._most:
            self._heads.clear()
        key = header_key, num_bytes
        self._heads[key] = (head, *self._heads.get(key, ())[: _MOST_HEADS_ALIKE - 1])


class Stream:
    """An Arrow IPC stream.

    Attributes:
        header: what the schema's metadata have under a key; None if there is nothing.
        names: of the columns.

    Raises, from its making as from its methods:
        ValueError: when it is damaged, or cannot be taken.
    """

    def __init__(
        self,
        body: bytes | memoryview,
        most_inflated_bytes: int,
        header_key: bytes = b"",
        heads: Heads | None = None,
    ) -> None:
        """`most_inflated_bytes` is what compressed buffers may have together, decompressed."""
        if bytes(body[-len(END) :]) != END:  # Arrow takes a stream cut between two messages for a whole one
            raise ValueError("the body is no Arrow IPC stream that comes to its end")
        self._body = body
        self._most_inflated_bytes = most_inflated_bytes
        self._header_key = header_key
        self._heads = heads
        self._head = None if heads is None else heads.find(header_key, body)
        self.header: bytes | None
        if self._head is None:
            self._messages, schema = _messages_of(body)
            self.header = (schema.metadata or {}).get(header_key)
            self.names = frozenset(schema.names)
        else:
            begin = len(self._head.before)
            self.header = bytes(body[begin : begin + self._head.header_bytes])
            self.names = self._head.names

    def columns(self, wanted: Wanted) -> dict[str, NDArray[Any]]:
        """The wanted columns, [n, ...] each: views of the body, or of what it inflates to."""
        if self._head is not None and self._head.wanted != wanted:
            self._messages, _ = _messages_of(self._body)
            self._head = None
        self._head = self._head or self._new_head(wanted)
        if self._head is None:
            return self._read(wanted)
        return {name: np.ndarray(shape, dtype, self._body, place) for name, shape, dtype, place in self._head.places}

    def _read(self, wanted: Wanted) -> dict[str, NDArray[Any]]:
        inflated = 0
        for each in self._messages[1:]:
            inflated += inflated_bytes(each.metadata.to_pybytes(), memoryview(each.body))
            if inflated > self._most_inflated_bytes:  # before it is: zeros compress to a thousandth of their bytes
                raise ValueError(
                    f"the Arrow stream has compressed buffers of {inflated} bytes, and at most "
                    f"{self._most_inflated_bytes} are taken; send them uncompressed, or less at once"
                )
        return _arrays(_records(pa.py_buffer(self._body)), wanted)

    def _new_head(self, wanted: Wanted) -> _Head | None:
        """The head of this stream; None if it is of another kind than can be remembered."""
        header = self.header or b""
        if len(self._messages) != 2 or self.names != {name for name, _ in wanted}:
            return None
        records = self._messages[1].body
        begin = records.address - pa.py_buffer(self._body).address
        head = bytes(self._body[:begin])
        if begin + records.size + len(END) != len(self._body) or (header and head.count(header) != 1):
            return None
        places = _places(head, self._messages[1], wanted)
        if places is None:
            return None
        before, _, after = head.partition(header) if header else (head, b"", b"")
        new = _Head(before, len(header), after, self.names, wanted, places)
        if self._heads is not None:
            self._heads.add(self._header_key, len(self._body), new)
        return new


def _messages_of(body: bytes | memoryview) -> tuple[list[pa.ipc.Message], pa.Schema]:
    """The messages of a stream, of which the first is the schema's."""
    try:
        messages = list(pa.ipc.MessageReader.open_stream(pa.py_buffer(body)))
        _check_messages(messages)
        return messages, pa.ipc.read_schema(messages[0])
    except (pa.ArrowException, OSError, EOFError) as error:
        raise ValueError(f"the body is no Arrow IPC stream: {error}") from error


def _check_messages(messages: list[pa.ipc.Message]) -> None:
    if not messages or messages[0].type != "schema":  # Arrow would take any other message for one, and crash
        raise ValueError("the Arrow stream does not begin with a schema")
    for each in messages:
        if each.metadata_version != pa.ipc.MetadataVersion.V5:  # V4 could say elsewhere that it is compressed
            raise ValueError("the Arrow stream is of a format before version 5; Arrow 1.0 and later send that")
        if each.type == "dictionary":
            raise ValueError("the Arrow stream has dictionary-encoded columns; send plain ones")


def _places(
    head: bytes, records: pa.ipc.Message, wanted: Wanted
) -> tuple[tuple[str, tuple[int, ...], np.dtype[Any], int], ...] | None:
    """Where the numbers of each column stand in a stream with this head.

    Found by letting Arrow read zeros in place of the numbers, and looking where it takes them from. None where it
    refuses them, or takes them from anywhere else.
    """
    stream = np.zeros(len(head) + records.body.size + len(END), dtype=np.uint8)
    stream[: len(head)] = np.frombuffer(head, dtype=np.uint8)
    stream[-len(END) :] = np.frombuffer(END, dtype=np.uint8)
    if inflated_bytes(records.metadata.to_pybytes(), stream[len(head) :].data):
        return None
    try:
        arrays = _arrays(_records(pa.py_buffer(stream)), wanted)
    except ValueError:
        return None
    places = []
    for name, array in arrays.items():
        place = array.ctypes.data - stream.ctypes.data if array.size else 0
        if not (0 <= place <= len(stream) - array.nbytes and array.flags.c_contiguous):
            return None
        places.append((name, array.shape, array.dtype, place))
    return tuple(places)


def _records(stream: pa.Buffer) -> pa.RecordBatch:
    """All record batches of a stream as one."""
    try:
        with pa.ipc.open_stream(stream) as reader:
            table = reader.read_all()
        table.validate(full=True)
        batches = table.combine_chunks().to_batches()
        if batches:
            return batches[0]
        return pa.RecordBatch.from_arrays([pa.array([], each.type) for each in table.schema], schema=table.schema)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise ValueError(f"the body is no Arrow IPC stream: {error}") from error


def _arrays(records: pa.RecordBatch, wanted: Wanted) -> dict[str, NDArray[Any]]:
    return {name: _array(records, name, fits) for name, fits in wanted}


def _array(records: pa.RecordBatch, name: str, fits: Callable[[pa.DataType], bool]) -> NDArray[Any]:
    index = records.schema.get_field_index(name)
    if index < 0:
        raise ValueError(f"the Arrow stream must have one column {name!r}")
    column = records.column(index)
    if not fits(column.type):
        raise ValueError(f"column {name!r} must not be of type {column.type}")
    if column.null_count:
        raise ValueError(f"column {name!r} has nulls")
    return numbers_of(column)
