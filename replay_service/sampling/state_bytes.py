"""A run's state as bytes: equal states give equal bytes, on every machine.

magic, version   8 + 4 bytes
length           4 bytes: of the head
head             JSON with sorted keys: the configuration, the counters, and the steps that await reports
arrays           little-endian, in the order of `_arrays`, then the born, the latest, the pending and the held rows
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from typing import Any, Final

import numpy as np

from replay_service.sampling.cursors import BORN_ROW
from replay_service.sampling.events import PLANNED_ROW, Created
from replay_service.sampling.latest import REPORT_ROW
from replay_service.sampling.pending import Pending
from replay_service.sampling.run_config import RunConfig
from replay_service.sampling.run_state import HELD_ROW, RatioSince, RunState, in_canonical_order
from replay_service.sampling.trained import TrainedCounts, TrainedTotals

STATE_VERSION: Final = 9
_MAGIC: Final = b"replayst"
_COUNTERS: Final = (
    "generation",
    "num_quantiles",
    "next_step",
    "policy_version",
    "steady_since",
    "generation_since",
    "closed",
    "job_end",
)
_PREFIX: Final = struct.Struct("<8sII")


def to_bytes(state: RunState) -> bytes:
    """The canonical bytes of a state."""
    steps, held = sorted(state.pending), sorted(state.held)
    head = {
        "config": asdict(state.config),
        **{name: getattr(state, name) for name in _COUNTERS},
        "carry": str(state.carry),
        "ratios": [[step, str(ratio)] for step, ratio in state.ratios],
        "origin": state.recent.origin,
        "reference": state.recent.reference,
        "num_strata": state.num_strata,
        "num_blocks": state.cursors.block_size.shape[1],
        "num_born": len(state.cursors.born),
        "latest": [len(each.rows) for each in state.latest],
        "trained": state.trained.counts,
        "trained_through": sorted(state.trained.next_step.items()),
        "pending": [[step, state.pending[step].num_awaited] for step in steps],
        "held": [[step, len(state.held[step])] for step in held],
    }
    text = json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
    arrays = [array.astype(array.dtype.newbyteorder("<")).tobytes() for array in _arrays(state)]
    rows = [state.cursors.born.tobytes(), *(each.rows.tobytes() for each in state.latest)]
    rows += [state.pending[step].rows.tobytes() for step in steps]
    rows += [in_canonical_order(state.held[step]).tobytes() for step in held]
    return b"".join([_PREFIX.pack(_MAGIC, STATE_VERSION, len(text)), text, *arrays, *rows])


def version_of(data: bytes) -> int:
    """The STATE_VERSION of the release that wrote these bytes; raises ValueError when they are no state."""
    if len(data) < _PREFIX.size or not data.startswith(_MAGIC):
        raise ValueError("these bytes are not the state of a run")
    version: int = _PREFIX.unpack_from(data)[1]
    return version


def from_bytes(data: bytes) -> RunState:
    """The state that `to_bytes` wrote.

    Raises:
        ValueError: when the bytes are no state, or are of another version.
    """
    version = version_of(data)
    _, _, length = _PREFIX.unpack_from(data)
    if version != STATE_VERSION:
        raise ValueError(f"the state is of version {version}; this release reads version {STATE_VERSION}")
    head = json.loads(data[_PREFIX.size : _PREFIX.size + length])
    state = _empty(head)
    for name in _COUNTERS:
        setattr(state, name, head[name])
    state.carry = Fraction(head["carry"])
    state.ratios = tuple(RatioSince(step, Fraction(ratio)) for step, ratio in head["ratios"])
    state.trained = TrainedTotals(TrainedCounts(*head["trained"]), dict(head["trained_through"]))
    state.recent.origin, state.recent.reference = head["origin"], head["reference"]
    place = _PREFIX.size + length
    for array in _arrays(state):
        array[...] = np.frombuffer(data, array.dtype.newbyteorder("<"), array.size, place).reshape(array.shape)
        place += array.nbytes
    state.cursors.born = np.frombuffer(data, BORN_ROW, head["num_born"], place)
    place += state.cursors.born.nbytes
    for latest, num_rows in zip(state.latest, head["latest"], strict=True):
        latest.add(np.frombuffer(data, REPORT_ROW, num_rows, place))
        place += num_rows * REPORT_ROW.itemsize
    for step, num_rows in head["pending"]:
        state.pending[step] = Pending.of(np.frombuffer(data, PLANNED_ROW, num_rows, place))
        place += num_rows * PLANNED_ROW.itemsize
    for step, num_rows in head["held"]:
        state.held[step] = np.frombuffer(data, HELD_ROW, num_rows, place)
        place += num_rows * HELD_ROW.itemsize
    if place != len(data):
        raise ValueError(f"the state has {len(data)} bytes where {place} were expected")
    return state


def _empty(head: dict[str, Any]) -> RunState:
    """A state with arrays of the right shapes, all zero."""
    config, nothing = RunConfig.from_journal(head["config"]), (0,) * head["num_strata"]
    state = RunState.initial(Created(config, head["generation"], head["num_quantiles"], nothing))
    shape = (head["num_strata"], head["num_blocks"])
    state.cursors.block_size, state.cursors.block_drawn = (
        np.zeros(shape, dtype=np.int64),
        np.zeros(shape, dtype=np.int64),
    )
    return state


def _arrays(state: RunState) -> Iterator[np.ndarray]:
    totals = state.totals
    yield from (state.cursors.num_draws, state.cursors.epoch, state.cursors.sizes)
    yield from (state.cursors.block_size, state.cursors.block_drawn)
    yield from (totals.counts, totals.nats, state.recent.sums)
