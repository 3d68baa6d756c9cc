"""Columns of numbers from Arrow IPC streams that anyone may have sent.

Where Arrow finds the numbers follows from the schema and from the record batch's message alone, and most streams bear a
message that came before. So where they stand is remembered by the message, and Arrow is asked about new ones only.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay_service.corpus.format.segments import binary_rows, list_rows
from replay_service.gateway.wire.ipc_messages import inflated_bytes

END: Final = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""What ends an Arrow stream (Arrow columnar format, "IPC Streaming Format")."""

_CONTINUATION: Final = END[:4]
_MOST_LAYOUTS: Final = 256
_MOST_KEPT_BYTES: Final = 8 << 10
"""Of a message, and of a schema, that is remembered."""

Wanted = tuple[tuple[str, Callable[[pa.DataType], bool]], ...]
"""Names of columns, each with whether an Arrow type is the right one."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the numbers of a record batch stand.

    Attributes:
        schema: that the message goes with; its metadata do not matter.
        places: of each wanted column the name, shape, type, and where in the message's body it begins, bytes.
    """

    schema: pa.Schema
    places: tuple[tuple[str, tuple[int, ...], np.dtype[Any], int], ...]


_layouts: Final[dict[tuple[bytes, int, Wanted], _Layout]] = {}


@dataclass(frozen=True, slots=True)
class Stream:
    """An Arrow IPC stream, of which Arrow has found the messages.

    Raises, from its making as from its methods:
        ValueError: when it is damaged, or cannot be taken.
    """

    body: bytes | memoryview
    most_inflated_bytes: int
    """What compressed buffers may have together, decompressed."""
    schema: pa.Schema = field(init=False)
    _buffer: pa.Buffer = field(init=False)
    _messages: list[pa.ipc.Message] = field(init=False)
    """Those after the schema's."""

    def __post_init__(self) -> None:
        if bytes(self.body[-len(END) :]) != END:  # Arrow takes a stream cut between two messages for a whole one
            raise ValueError("the body is no Arrow IPC stream that comes to its end")
        buffer = pa.py_buffer(self.body)
        try:
            messages = list(pa.ipc.MessageReader.open_stream(buffer))
            _check_messages(messages)
            schema = pa.ipc.read_schema(messages[0])
        except (pa.ArrowException, OSError, EOFError) as error:
            raise ValueError(f"the body is no Arrow IPC stream: {error}") from error
        object.__setattr__(self, "schema", schema)
        object.__setattr__(self, "_buffer", buffer)
        object.__setattr__(self, "_messages", messages[1:])

    def columns(self, wanted: Wanted) -> dict[str, NDArray[Any]]:
        """The wanted columns, [n, ...] each: views of the body, or of what it inflates to."""
        layout = self._layout(wanted)
        if layout is None:
            self._check_inflated()
            return _arrays(_records(self._buffer), wanted)
        begin = self._messages[0].body.address - self._buffer.address
        return {name: np.ndarray(shape, dtype, self.body, begin + place) for name, shape, dtype, place in layout.places}

    def _layout(self, wanted: Wanted) -> _Layout | None:
        """Where the columns stand, if these are all and nothing but numbers in a single record batch."""
        if len(self._messages) != 1 or len(self.schema) != len(wanted):
            return None
        (message,) = self._messages
        if message.metadata.size > _MOST_KEPT_BYTES:
            return None
        key = (message.metadata.to_pybytes(), message.body.size, wanted)
        layout = _layouts.get(key)
        if layout is not None and layout.schema.equals(self.schema):
            return layout
        schema = self.schema.remove_metadata()
        if not schema.equals(self.schema):  # it forgets that the numbers have another order of bytes than here
            return None
        layout = _new_layout(schema, *key)
        if layout is not None:
            if len(_layouts) >= _MOST_LAYOUTS:
                _layouts.clear()
            _layouts[key] = layout
        return layout

    def _check_inflated(self) -> None:
        """A limit on what a body decodes to, before it does: zeros compress to a thousandth of their bytes."""
        inflated = 0
        for each in self._messages:
            inflated += inflated_bytes(each.metadata.to_pybytes(), memoryview(each.body))
            if inflated > self.most_inflated_bytes:
                raise ValueError(
                    f"the Arrow stream has compressed buffers of {inflated} bytes, and at most "
                    f"{self.most_inflated_bytes} are taken; send them uncompressed, or less at once"
                )


def _check_messages(messages: list[pa.ipc.Message]) -> None:
    if not messages or messages[0].type != "schema":  # Arrow would take any other message for one, and crash
        raise ValueError("the Arrow stream does not begin with a schema")
    for each in messages:
        if each.metadata_version != pa.ipc.MetadataVersion.V5:  # V4 could say elsewhere that it is compressed
            raise ValueError("the Arrow stream is of a format before version 5; Arrow 1.0 and later send that")
        if each.type == "dictionary":
            raise ValueError("the Arrow stream has dictionary-encoded columns; send plain ones")


def _new_layout(schema: pa.Schema, message: bytes, num_bytes: int, wanted: Wanted) -> _Layout | None:
    """Found by letting Arrow read zeros in place of the numbers, and looking where it takes them from.

    None where zeros are refused, where Arrow puts the numbers anywhere else, or where it is not worth the memory.
    """
    head = schema.serialize().to_pybytes() + _CONTINUATION + len(message).to_bytes(4, "little") + message
    if len(head) > 2 * _MOST_KEPT_BYTES:
        return None
    stream = np.zeros(len(head) + num_bytes + len(END), dtype=np.uint8)
    stream[: len(head)] = np.frombuffer(head, dtype=np.uint8)
    stream[-len(END) :] = np.frombuffer(END, dtype=np.uint8)
    if inflated_bytes(message, stream[len(head) :].data):
        return None
    try:
        arrays = _arrays(_records(pa.py_buffer(stream)), wanted)
    except ValueError:
        return None
    begin = stream.ctypes.data + len(head)
    places = []
    for name, array in arrays.items():
        place = array.ctypes.data - begin if array.size else 0
        if not (0 <= place <= num_bytes - array.nbytes and array.flags.c_contiguous):
            return None
        places.append((name, array.shape, array.dtype, place))
    return _Layout(schema, tuple(places))


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
    if pa.types.is_fixed_size_list(column.type):
        return list_rows(column)
    if pa.types.is_fixed_size_binary(column.type):
        return binary_rows(column)
    array: NDArray[Any] = column.to_numpy()
    return array
