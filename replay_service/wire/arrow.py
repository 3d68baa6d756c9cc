"""The wire: batches and loss reports as Arrow IPC streams. The service and its clients share this module.

A batch is one record batch with a row for each rehearsed sample, in step order, and a header in the schema's metadata.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic_core import from_json, to_json
from zlib_ng.zlib_ng import crc32

from replay_service.corpus.format.segments import Kind
from replay_service.sampling.events import LOSS_ROW
from replay_service.wire.column_types import is_ids, is_nested, is_tensor
from replay_service.wire.decoding import Stream, Wanted
from replay_service.wire.encoding import parts_of_stream, record_batch

ARROW_STREAM: Final = "application/vnd.apache.arrow.stream"
WIRE_VERSION: Final = 1
"""Raised when a release could not read what another one sends; `tests/wire/golden` holds a batch of each."""

CHECKSUM_HEADER: Final = "Replay-Checksum"
"""Header of a request or an answer: the `checksum` of its body."""

MOST_INFLATED_BYTES: Final = 1 << 30
"""What compressed buffers of an answer may have together: a server's kilobytes must not fill a trainer's memory."""

Compression = Literal["none", "zstd"]
_HEADER_KEY: Final = b"replay.header"

LOSSES_SCHEMA: Final = pa.schema([(name, pa.from_numpy_dtype(LOSS_ROW[name])) for name in LOSS_ROW.names or ()])
_LOSSES: Final[Wanted] = tuple((each.name, each.type.equals) for each in LOSSES_SCHEMA)


def checksum(*parts: bytes | bytearray | memoryview) -> str:
    """The CRC-32 of a body, of which these are the parts, as eight hexadecimal digits, as it stands in CHECKSUM_HEADER.

    It is there for accidents, not for attacks: TCP's checksum of 16 bits, and proxies that put together anew what they
    pass on, let damage through that neither HTTP nor Arrow would notice in the middle of the token ids.
    """
    value = 0
    for each in parts:
        value = crc32(each, value)
    return f"{value:08x}"


@dataclass(frozen=True, slots=True)
class StepHeader:
    """What a batch says of one of its steps."""

    step: int
    num_rehearsed: int
    """Samples that the whole job rehearses in the step, over all ranks."""
    rehearsed_before: int
    """Samples that the whole job rehearses in all the steps before."""
    policy_version: int


@dataclass(frozen=True, slots=True)
class BatchHeader:
    """What a batch says of itself."""

    run: str
    attempt: int
    corpus: str
    generation: int
    injection_ratio: str
    rank: int
    world_size: int
    seq_len: int
    separator_id: int
    steps: list[StepHeader]
    wire_version: int = WIRE_VERSION
    kind: Kind = "language"
    """Not written where it is `language`, so that who knows no other kind reads such batches."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The samples that one rank rehearses in a window of steps; every array has one row a sample.

    Attributes:
        step: int64 [n], ascending.
        sample_id: int64 [n].
        input_ids: [n, seq_len], the narrowest unsigned type; padding beyond `length` means nothing. [n, 0] where there
            are `inputs`, which are no text; it does not travel then.
        length: int32 [n], real tokens, or 1 where there are `inputs`; 0 for a sample that could not be read.
        base_loss: float32 [n], nats per prediction.
        base_correct: uint8 [n, ceil(seq_len / 8)], packed bits, least significant first: bit t says that the base
            model's argmax predicted token t. With a label uint8 [n, 1]: bit 0 says that it predicted the label.
        stratum: int32 [n].
        probability: float64 [n], of a single draw of this sample.
        times_drawn: int32 [n], this draw included.
        topk_ids: [n, seq_len - 1, k], the narrowest unsigned type: the base model's k likeliest tokens for each
            prediction. None unless asked for.
        topk_logprobs: float16, the same shape: their log-probabilities, nats. None unless asked for.
        inputs: [n, ...], numbers of any type, in a classification corpus that is no text.
        label: int32 [n], the class of each sample, in a classification corpus.
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
    topk_ids: NDArray[np.unsignedinteger] | None = None
    topk_logprobs: NDArray[np.float16] | None = None
    inputs: NDArray[Any] | None = None
    label: NDArray[np.int32] | None = None

    def columns(self) -> dict[str, NDArray[Any]]:
        """The arrays that travel, by name."""
        left_out = "" if self.inputs is None else "input_ids"
        return {name: each for name in _COLUMNS if (each := getattr(self, name)) is not None and name != left_out}

    def __len__(self) -> int:
        return len(self.step)

    @property
    def only_step(self) -> StepHeader:
        """The header of the one step of this batch; `of_step` gives such batches."""
        (header,) = self.header.steps
        return header

    def rows(self, rows: slice) -> "Batch":
        """Some of its rows, as views; the header stays."""
        return self._of(self.header, rows)

    def of_step(self, step: int) -> "Batch":
        """The rows of one step, as views."""
        first, last = self.step.searchsorted((step, step + 1))
        steps = [each for each in self.header.steps if each.step == step]
        return self._of(replace(self.header, steps=steps), slice(first, last))

    @classmethod
    def joined(cls, parts: Sequence["Batch"]) -> "Batch":
        """The samples of one rank in adjacent windows as one batch."""
        header = replace(parts[0].header, steps=[step for part in parts for step in part.header.steps])
        columns = ([getattr(part, name) for part in parts] for name in _ARRAYS)
        arrays: list[Any] = [None if each[0] is None else np.concatenate(each) for each in columns]
        return cls(header, *arrays)

    def _of(self, header: BatchHeader, rows: slice) -> "Batch":
        arrays: list[Any] = [None if each is None else each[rows] for each in map(self.__getattribute__, _ARRAYS)]
        return Batch(header, *arrays)


_ARRAYS: Final = Batch.__slots__[1:]

_LIKELIEST: Final = frozenset({"topk_ids", "topk_logprobs"})

_COLUMNS: Final[dict[str, Callable[[pa.DataType], bool]]] = {
    "step": pa.types.is_int64,
    "sample_id": pa.types.is_int64,
    "input_ids": is_ids,
    "length": pa.types.is_int32,
    "base_loss": pa.types.is_float32,
    "base_correct": pa.types.is_fixed_size_binary,
    "stratum": pa.types.is_int32,
    "probability": pa.types.is_float64,
    "times_drawn": pa.types.is_int32,
    "topk_ids": lambda type_: is_nested(type_, pa.types.is_unsigned_integer),
    "topk_logprobs": lambda type_: is_nested(type_, pa.types.is_float16),
    "inputs": is_tensor,
    "label": pa.types.is_int32,
}
"""The arrays of a batch, in the order of its fields, and whether an Arrow type is the right one."""


def encode_batch(batch: Batch, compression: Compression = "none") -> memoryview:
    """A batch as an Arrow IPC stream, its buffers compressed one by one if that is wanted."""
    if compression == "none":
        return memoryview(b"".join(encode_parts(batch)))
    records = record_batch(batch.columns()).replace_schema_metadata({_HEADER_KEY: _header_json(batch.header)})
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, records.schema, options=options) as writer:
        writer.write_batch(records)
    return memoryview(sink.getvalue())


def encode_parts(batch: Batch) -> list[memoryview]:
    """A batch as an Arrow IPC stream, in parts that follow one another.

    A large array that is contiguous is a part as it stands; all others are copied once, to their places.
    """
    return parts_of_stream(batch.columns(), {_HEADER_KEY: _header_json(batch.header)})


def _header_json(header: BatchHeader) -> bytes:
    """Without the kind where it is language, as releases that know no other kind read it."""
    names = (name for name in BatchHeader.__slots__ if name != "kind" or header.kind != "language")
    return to_json({name: getattr(header, name) for name in names})


def decode_batch(body: bytes | memoryview, most_inflated_bytes: int = MOST_INFLATED_BYTES) -> Batch:
    """A batch from an Arrow IPC stream; arrays are views of `body`, or of what it inflates to.

    Raises:
        ValueError: when the body is no batch, or of another version of the wire, or its compressed buffers have more
            than `most_inflated_bytes`.
    """
    stream = Stream(body, most_inflated_bytes, _HEADER_KEY)
    try:
        fields = from_json(stream.header or b"null")
        fields["steps"] = [StepHeader(**each) for each in fields["steps"]]
        header = BatchHeader(**fields)
        columns = stream.columns(_wanted(header.kind, stream.names))
        columns.setdefault("input_ids", np.empty((len(columns["step"]), 0), dtype=np.uint8))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the Arrow stream is no rehearsal batch: {error!r}") from error
    if header.wire_version != WIRE_VERSION:
        raise ValueError(f"the batch is of wire version {header.wire_version}; this release reads {WIRE_VERSION}")
    return Batch(header, **columns)


@functools.lru_cache(256)
def _wanted(kind: Kind, found: frozenset[str]) -> Wanted:
    """The columns that a batch of this kind must have, or may have and does."""
    if kind == "language":
        names = set(_COLUMNS) - {"inputs", "label"} - (_LIKELIEST - found)
    elif kind == "classification":
        names = set(_COLUMNS) - _LIKELIEST - {"input_ids" if "inputs" in found else "inputs"}
    else:
        raise ValueError(f"samples of the kind {kind!r} are not known to this release")
    return tuple((name, fits) for name, fits in _COLUMNS.items() if name in names)


def encode_losses(rows: np.ndarray) -> memoryview:
    """Loss rows (LOSS_ROW [n]) as an Arrow IPC stream."""
    return memoryview(b"".join(parts_of_stream({name: rows[name] for name in LOSSES_SCHEMA.names})))


def decode_losses(body: bytes) -> np.ndarray:
    """Loss rows (LOSS_ROW [n]) from an Arrow IPC stream.

    Raises:
        ValueError: when the body is damaged, or lacks a column, or a column has another type or a null.
    """
    columns = Stream(body, most_inflated_bytes=0).columns(_LOSSES)
    rows = np.empty(len(columns["step"]), dtype=LOSS_ROW)
    for name, column in columns.items():
        rows[name] = column
    return rows
