"""A run's state as bytes: equal states give equal bytes, on every machine.

magic, version   8 + 4 bytes
length           4 bytes: of the head
head             JSON with sorted keys: the configuration, the counters, and the steps that await reports
arrays           little-endian, in the order of `_arrays`, then the pending and the held rows in step order
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import asdict
from typing import Final

import numpy as np

from replay_service.sampling.events import PLANNED_ROW
from replay_service.sampling.partition import Partition
from replay_service.sampling.run_config import RunConfig
from replay_service.sampling.run_state import HELD_ROW, Pending, RunState, in_canonical_order

STATE_VERSION: Final = 1
_MAGIC: Final = b"replayst"
_PREFIX: Final = struct.Struct("<8sII")


def to_bytes(state: RunState) -> bytes:
    """The canonical bytes of a state; its partition is not in them, since the corpus has it."""
    steps, held = sorted(state.pending), sorted(state.held)
    head = {
        "config": asdict(state.config),
        "next_step": state.next_step,
        "policy_version": state.policy_version,
        "ratio_since": state.ratio_since,
        "closed": state.closed,
        "origin": state.recent.origin,
        "num_strata": state.partition.num_strata,
        "pending": [[step, len(state.pending[step].rows)] for step in steps],
        "held": [[step, len(state.held[step])] for step in held],
    }
    text = json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
    arrays = [array.astype(array.dtype.newbyteorder("<")).tobytes() for array in _arrays(state)]
    rows = [state.pending[step].rows.tobytes() for step in steps]
    rows += [in_canonical_order(state.held[step]).tobytes() for step in held]
    return b"".join([_PREFIX.pack(_MAGIC, STATE_VERSION, len(text)), text, *arrays, *rows])


def from_bytes(data: bytes, partition: Partition) -> RunState:
    """The state that `to_bytes` wrote.

    Raises:
        ValueError: when the bytes are no state, are of another version, or belong to another partition.
    """
    if len(data) < _PREFIX.size or not data.startswith(_MAGIC):
        raise ValueError("these bytes are not the state of a run")
    _, version, length = _PREFIX.unpack_from(data)
    if version != STATE_VERSION:
        raise ValueError(f"the state is of version {version}; this release reads version {STATE_VERSION}")
    head = json.loads(data[_PREFIX.size : _PREFIX.size + length])
    if head["num_strata"] != partition.num_strata:
        raise ValueError(f"the state has {head['num_strata']} strata, but the corpus {partition.num_strata}")
    state = RunState.initial(RunConfig.from_dict(head["config"]), partition)
    for name in ("next_step", "policy_version", "ratio_since", "closed"):
        setattr(state, name, head[name])
    state.recent.origin = head["origin"]
    place = _PREFIX.size + length
    for array in _arrays(state):
        array[...] = np.frombuffer(data, array.dtype.newbyteorder("<"), array.size, place).reshape(array.shape)
        place += array.nbytes
    for step, num_rows in head["pending"]:
        state.pending[step] = Pending(np.frombuffer(data, PLANNED_ROW, num_rows, place))
        place += num_rows * PLANNED_ROW.itemsize
    for step, num_rows in head["held"]:
        state.held[step] = np.frombuffer(data, HELD_ROW, num_rows, place)
        place += num_rows * HELD_ROW.itemsize
    if place != len(data):
        raise ValueError(f"the state has {len(data)} bytes where {place} were expected")
    return state


def _arrays(state: RunState) -> Iterator[np.ndarray]:
    totals = state.totals
    yield state.cursors
    yield from (totals.samples, totals.tokens, totals.flips, totals.loss_nats, totals.excess_nats)
    yield from (state.recent.count, state.recent.damage)
