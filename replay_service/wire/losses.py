"""Loss reports: the trainer's measurements of rehearsed samples, as records and as Arrow IPC streams."""

from typing import Final

import numpy as np
import pyarrow as pa

from replay_service.wire.decoding import Heads, Stream, Wanted
from replay_service.wire.encoding import parts_of_stream

LOSS_ROW: Final = np.dtype(
    [
        ("step", "<i8"),
        ("sample_id", "<i8"),
        ("loss_nats", "<f8"),
        ("rank", "<i4"),
        ("num_tokens", "<i4"),
        ("num_flips", "<i4"),
        ("attempt", "<i4"),
        ("num_gains", "<i4"),
    ]
)
"""The measurement of one rehearsed sample, before it becomes an event.

num_flips are predictions that the base model got right and the tuned one gets wrong. num_gains are those that the base
model got wrong and the tuned one gets right; GAINS_NOT_TOLD where the client does not count them.

An attempt of 0 is the run's current one. A num_tokens of 0 says that the sample could not be measured: the run waits
for it no longer, and learns nothing."""

GAINS_NOT_TOLD: Final = -1

MOST_NATS: Final = 1e6
"""No report says more, nats per token. Products and sums of losses up to this are far from an overflow, which would
spoil a run's statistics for good."""

LOSSES_SCHEMA: Final = pa.schema([(name, pa.from_numpy_dtype(LOSS_ROW[name])) for name in LOSS_ROW.names or ()])
_WANTED: Final[Wanted] = tuple((each.name, each.type.equals) for each in LOSSES_SCHEMA)
_WITHOUT_GAINS: Final[Wanted] = tuple(each for each in _WANTED if each[0] != "num_gains")


def encode_losses(rows: np.ndarray) -> memoryview:
    """Loss rows (LOSS_ROW [n]) as an Arrow IPC stream."""
    return memoryview(b"".join(parts_of_stream({name: rows[name] for name in LOSSES_SCHEMA.names}, {})))


def decode_losses(body: bytes, heads: Heads | None = None) -> np.ndarray:
    """Loss rows (LOSS_ROW [n]) from an Arrow IPC stream, whose column num_gains may be missing.

    `heads` remembers those of streams: the next report like this one is decoded faster.

    Raises:
        ValueError: when the body is damaged, or lacks a column, or a column has another type or a null.
    """
    stream = Stream(body, most_inflated_bytes=0, heads=heads)
    columns = stream.columns(_WANTED if "num_gains" in stream.names else _WITHOUT_GAINS)
    rows = np.empty(len(columns["step"]), dtype=LOSS_ROW)
    rows["num_gains"] = GAINS_NOT_TOLD
    for name, column in columns.items():
        rows[name] = column
    return rows
