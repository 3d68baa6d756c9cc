"""Batches: the samples that one rank rehearses in a window of steps, as arrays and as Arrow IPC streams.

A batch is one record batch with a row for each rehearsed sample, in step order, and a header in the schema's metadata.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic_core import from_json, to_json

from replay_service.wire.columns import Column, columns_of
from replay_service.wire.decoding import Heads, Stream, Wanted
from replay_service.wire.encoding import parts_of_stream, record_batch
from replay_service.wire.protocol import WIRE_VERSION
from replay_service.wire.samples import REQUIRED_FIELDS, SAMPLE_FIELDS, Kind, SampleColumns

MOST_INFLATED_BYTES: Final = 1 << 30
"""The most that the compressed buffers of a batch may have together: kilobytes must not fill a trainer's memory."""

Compression = Literal["none", "zstd"]
_HEADER_KEY: Final = b"replay.header"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(SampleColumns):
    """The samples that one rank rehearses in a window of steps, in the order of the steps.

    Attributes:
        step: int64 [n], ascending.
        sample_id: int64 [n].
        probability: float64 [n], of a single draw of this sample.
        times_drawn: int32 [n], this draw included.
    """

    header: BatchHeader
    step: Annotated[NDArray[np.int64], Column(pa.types.is_int64)]
    sample_id: Annotated[NDArray[np.int64], Column(pa.types.is_int64)]
    probability: Annotated[NDArray[np.float64], Column(pa.types.is_float64)]
    times_drawn: Annotated[NDArray[np.int32], Column(pa.types.is_int32)]

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
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in parts[0].columns()}
        return cls.of(columns, header=header)

    @classmethod
    def column_names(cls) -> tuple[str, ...]:
        return _ORDER

    def _of(self, header: BatchHeader, rows: slice) -> "Batch":
        return Batch.of({name: each[rows] for name, each in self.columns().items()}, header=header)


_COLUMNS: Final = columns_of(Batch)

_ORDER: Final = (
    *("step", "sample_id"),
    *REQUIRED_FIELDS,
    *("probability", "times_drawn"),
    *(name for name in SAMPLE_FIELDS if name not in REQUIRED_FIELDS),
)
"""The columns in the order in which they travel."""

LIKELIEST: Final = frozenset({"topk_ids", "topk_logprobs"})
"""The columns that travel only when they are asked for."""


def encode_batch(batch: Batch, compression: Compression = "none") -> memoryview:
    """A batch as an Arrow IPC stream, its buffers compressed one by one if that is wanted."""
    if compression == "none":
        return memoryview(b"".join(encode_parts(batch)))
    records = record_batch(batch.columns(), _COLUMNS).replace_schema_metadata({_HEADER_KEY: _header_json(batch.header)})
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, records.schema, options=options) as writer:
        writer.write_batch(records)
    return memoryview(sink.getvalue())


def encode_parts(batch: Batch) -> list[memoryview]:
    """A batch as an Arrow IPC stream, in parts that follow one another.

    A large array that is contiguous is a part as it stands; all others are copied once, to their places.
    """
    return parts_of_stream(batch.columns(), _COLUMNS, {_HEADER_KEY: _header_json(batch.header)})


def _header_json(header: BatchHeader) -> bytes:
    """Without the kind where it is language, as releases that know no other kind read it."""
    names = (name for name in BatchHeader.__slots__ if name != "kind" or header.kind != "language")
    return to_json({name: getattr(header, name) for name in names})


def decode_batch(
    body: bytes | memoryview, most_inflated_bytes: int = MOST_INFLATED_BYTES, heads: Heads | None = None
) -> Batch:
    """A batch from an Arrow IPC stream; arrays are views of `body`, or of what it inflates to.

    `heads` remembers those of streams: the next batch like this one is decoded faster.

    Raises:
        ValueError: when the body is no batch, or of another version of the wire, or its compressed buffers have more
            than `most_inflated_bytes`.
    """
    stream = Stream(body, most_inflated_bytes, _HEADER_KEY, heads)
    try:
        fields = from_json(stream.header or b"null")
        fields["steps"] = [StepHeader(**each) for each in fields["steps"]]
        header = BatchHeader(**fields)
        columns = stream.columns(_wanted(header.kind, stream.names))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the Arrow stream is no rehearsal batch: {error!r}") from error
    if header.wire_version != WIRE_VERSION:
        raise ValueError(f"the batch is of wire version {header.wire_version}; this release reads {WIRE_VERSION}")
    return Batch.of(columns, header=header)


@functools.lru_cache(256)
def _wanted(kind: Kind, found: frozenset[str]) -> Wanted:
    """The columns that a batch of this kind must have, or may have and does."""
    if kind == "language":
        names = set(_COLUMNS) - {"inputs", "label"} - (LIKELIEST - found)
    elif kind == "classification":
        names = set(_COLUMNS) - LIKELIEST - {"input_ids" if "inputs" in found else "inputs"}
    else:
        raise ValueError(f"samples of the kind {kind!r} are not known to this release")
    return tuple((name, _COLUMNS[name].fits) for name in _ORDER if name in names)
