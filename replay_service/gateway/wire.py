"""The wire: batches and loss reports as Arrow IPC streams. The service and its clients share this module.

A batch is one record batch with a row for each rehearsed sample, in step order, and a header in the schema's metadata.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay_service.corpus.segments import binary_rows, list_rows, wide_binary, wide_list
from replay_service.sampling.events import LOSS_ROW

ARROW_STREAM: Final = "application/vnd.apache.arrow.stream"
WIRE_VERSION: Final = 1
_HEADER_KEY: Final = b"replay.header"

LOSSES_SCHEMA: Final = pa.schema([(name, pa.from_numpy_dtype(LOSS_ROW[name])) for name in LOSS_ROW.names or ()])


@dataclass(frozen=True, slots=True)
class StepHeader:
    """What a batch says of one of its steps."""

    step: int
    num_rehearsed: int
    """Samples that the whole job rehearses in the step, over all ranks."""
    policy_version: int


@dataclass(frozen=True, slots=True)
class BatchHeader:
    """What a batch says of itself."""

    run: str
    corpus: str
    generation: int
    injection_ratio: str
    rank: int
    world_size: int
    seq_len: int
    separator_id: int
    steps: list[StepHeader]
    wire_version: int = WIRE_VERSION


@dataclass(frozen=True, slots=True)
class Batch:
    """The samples that one rank rehearses in a window of steps; every array has one row a sample.

    Attributes:
        step: int64 [n], ascending.
        sample_id: int64 [n].
        input_ids: [n, seq_len], the narrowest unsigned type; padding beyond `length` means nothing.
        length: int32 [n], real tokens.
        base_loss: float32 [n], nats per predicted token.
        base_correct: uint8 [n, ceil(seq_len / 8)], packed bits, least significant first: bit t says that the base
            model's argmax predicted token t.
        stratum: int32 [n].
        probability: float64 [n], of a single draw of this sample.
        times_drawn: int32 [n], this draw included.
    """

    header: BatchHeader
    step: NDArray[np.int64]
    sample_id: NDArray[np.int64]
    input_ids: NDArray[np.unsignedinteger]
    length: NDArray[np.int32]
    base_loss: NDArray[np.float32]
    base_correct: NDArray[np.uint8]
    stratum: NDArray[np.int32]
    probability: NDArray[np.float64]
    times_drawn: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.step)

    def of_step(self, step: int) -> "Batch":
        """The rows of one step, as views."""
        first, last = np.searchsorted(self.step, [step, step + 1])
        return Batch(self.header, *(getattr(self, name)[first:last] for name in _COLUMNS))


_WIDE: Final = {"input_ids": wide_list, "base_correct": wide_binary}
_COLUMNS: Final = tuple(name for name in Batch.__dataclass_fields__ if name != "header")


def encode_batch(batch: Batch) -> pa.Buffer:
    """A batch as an Arrow IPC stream."""
    columns = {name: _WIDE.get(name, pa.array)(getattr(batch, name)) for name in _COLUMNS}
    records = pa.record_batch(columns)
    header = json.dumps(asdict(batch.header)).encode()
    records = records.replace_schema_metadata({_HEADER_KEY: header})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, records.schema) as writer:
        writer.write_batch(records)
    return sink.getvalue()


def decode_batch(body: bytes) -> Batch:
    """A batch from an Arrow IPC stream; arrays are views of `body`.

    Raises:
        ValueError: when the body is no batch, or of another version of the wire.
    """
    records = _read(body)
    try:
        fields = json.loads((records.schema.metadata or {})[_HEADER_KEY])
        steps = [StepHeader(**each) for each in fields.pop("steps")]
        header = BatchHeader(steps=steps, **fields)
        columns = [_array(records.column(name)) for name in _COLUMNS]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the Arrow stream is no rehearsal batch: {error!r}") from error
    if header.wire_version != WIRE_VERSION:
        raise ValueError(f"the batch is of wire version {header.wire_version}; this release reads {WIRE_VERSION}")
    return Batch(header, *columns)


def encode_losses(rows: np.ndarray) -> pa.Buffer:
    """Loss rows (LOSS_ROW [n]) as an Arrow IPC stream."""
    records = pa.record_batch([np.ascontiguousarray(rows[name]) for name in LOSSES_SCHEMA.names], schema=LOSSES_SCHEMA)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, LOSSES_SCHEMA) as writer:
        writer.write_batch(records)
    return sink.getvalue()


def decode_losses(body: bytes) -> np.ndarray:
    """Loss rows (LOSS_ROW [n]) from an Arrow IPC stream.

    Raises:
        ValueError: when the body is damaged, or lacks a column, or a column has another type or a null.
    """
    records = _read(body)
    rows = np.empty(len(records), dtype=LOSS_ROW)
    for name, type_ in zip(LOSSES_SCHEMA.names, LOSSES_SCHEMA.types, strict=True):
        index = records.schema.get_field_index(name)
        if index < 0 or records.schema.field(index).type != type_:
            raise ValueError(f"the Arrow stream must have one column {name!r} of type {type_}")
        if records.column(index).null_count:
            raise ValueError(f"column {name!r} has nulls")
        rows[name] = records.column(index).to_numpy()
    return rows


def _read(body: bytes) -> pa.RecordBatch:
    try:
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            table = reader.read_all()
        table.validate(full=True)
        batches = table.combine_chunks().to_batches()
    except (
        pa.ArrowInvalid,
        pa.ArrowNotImplementedError,
        pa.ArrowSerializationError,
        OSError,
        EOFError,
    ) as error:
        raise ValueError(f"the body is no Arrow IPC stream: {error}") from error
    if batches:
        return batches[0]
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in table.schema], schema=table.schema)


def _array(column: Any) -> NDArray[Any]:
    if pa.types.is_fixed_size_list(column.type):
        return list_rows(column)
    if pa.types.is_fixed_size_binary(column.type):
        return binary_rows(column)
    array: NDArray[Any] = column.to_numpy()
    return array
