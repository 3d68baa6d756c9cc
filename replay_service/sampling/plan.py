"""The planner: which samples the whole job rehearses in a step."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.events import PLANNED_ROW, Planned
from replay_service.sampling.injection import num_rehearsed
from replay_service.sampling.partition import Partition
from replay_service.sampling.permutation import keys, permute, uniform
from replay_service.sampling.policies import systematic
from replay_service.sampling.run_state import RunState, pass_fence

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

_PICK_STRATA: Final = 1
_PICK_SAMPLES: Final = 2
_SHUFFLE: Final = 3


def plan_steps(state: RunState, last_step: int) -> list[Planned]:
    """The plans of every step from the state's next one to `last_step`, both included; `state` is left as it is."""
    config = state.config
    probabilities = state.probabilities()
    cursors, learned = state.cursors.copy(), state.what_plans_learn_from()
    plans = []
    for step in range(state.next_step, last_step + 1):
        known = learned.policy_version
        pass_fence(learned, step)
        if learned.policy_version != known:
            probabilities = learned.probabilities()
        num_draws = num_rehearsed(step - state.ratio_since, config.ratio, config.global_batch_size)
        rows = _draw(state.partition, probabilities, cursors, config.seed, step, num_draws)
        plans.append(Planned(step, learned.policy_version, int(cursors.sum()), rows))
        np.add.at(cursors, rows["stratum"], 1)
    return plans


def _draw(
    partition: Partition,
    probabilities: Float64Array,
    cursors: Int64Array,
    seed: int,
    step: int,
    num_draws: int,
) -> np.ndarray:
    rows = np.empty(num_draws, dtype=PLANNED_ROW)
    if not num_draws:
        return rows
    stratum = systematic(probabilities, num_draws, uniform(seed, _PICK_STRATA, step))
    size = partition.sizes[stratum]
    epoch, place = np.divmod(cursors[stratum] + _occurrence(stratum), size)
    place = permute(keys(seed, _PICK_SAMPLES, stratum, epoch), size, place)
    rows["sample_id"] = partition.locate(stratum, place)
    rows["stratum"] = stratum
    rows["times_drawn"] = epoch + 1
    rows["probability"] = probabilities[stratum] / size
    return rows[_shuffled(seed, step, num_draws)]


def _occurrence(stratum: Int64Array) -> Int64Array:
    """How often each value of the sorted `stratum` stood before it: 0, 1, 2, ... in every run of equal values."""
    return np.arange(len(stratum)) - np.searchsorted(stratum, stratum, side="left")


def _shuffled(seed: int, step: int, num_draws: int) -> Int64Array:
    """Neighbours in a plan fall to different ranks; without this, a rank would rehearse neighbouring strata."""
    key = np.repeat(keys(seed, _SHUFFLE, step), num_draws)
    return permute(key, np.full(num_draws, num_draws, dtype=np.int64), np.arange(num_draws, dtype=np.int64))
