"""The planner: which samples the whole job rehearses in a step."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.controller import decide
from replay_service.sampling.events import PLANNED_ROW, Adjusted, Planned
from replay_service.sampling.partition import Partition
from replay_service.sampling.permutation import keys, permute, uniform
from replay_service.sampling.policies import systematic
from replay_service.sampling.run_state import RunState, pass_fence
from replay_service.sampling.walk import Walk

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

_PICK_STRATA: Final = 1
_SHUFFLE: Final = 3


def adjustment_due(state: RunState) -> Adjusted | None:
    """What the controller of an `auto` run decides before the state's next step is planned, if it changes the ratio.

    It knows what the plan of that step may know, so in fenced mode it does not depend on the timing of requests.
    """
    config, step = state.config, state.next_step
    if not config.is_auto or step == state.ratio_since or step % config.decision_steps:
        return None
    learned = state.what_plans_learn_from()
    pass_fence(learned, step)
    decision = decide(config.budget, state.ratio, learned.forgetting())
    return None if decision is None else Adjusted(step - 1, decision.injection_ratio, decision.reason)


def last_before_decision(state: RunState, last_step: int) -> int:
    """How far, up to `last_step`, the state's next steps can be planned before the controller decides again."""
    if not state.config.is_auto:
        return last_step
    every = state.config.decision_steps
    return min(last_step, (state.next_step // every + 1) * every - 1)


def plan_steps(state: RunState, partition: Partition, last_step: int) -> list[Planned]:
    """The plans of every step from the state's next one to `last_step`, both included; `state` is left as it is.

    `partition` is that of the state's generation.
    """
    seed = state.config.seed
    probabilities = state.probabilities()
    walk, learned = state.walk.copy(), state.what_plans_learn_from()
    plans, carry = [], state.carry
    for step in range(state.next_step, last_step + 1):
        known = learned.policy_version
        pass_fence(learned, step)
        if learned.policy_version != known:
            probabilities = learned.probabilities()
        num_draws, carry = divmod(carry + state.rows_due(step), 1)
        before = int(walk.num_draws.sum())
        rows = _draw(partition, probabilities, walk, seed, step, num_draws)
        plans.append(Planned(step, learned.policy_version, before, rows))
    return plans


def _draw(
    partition: Partition, probabilities: Float64Array, walk: Walk, seed: int, step: int, num_draws: int
) -> np.ndarray:
    rows = np.empty(num_draws, dtype=PLANNED_ROW)
    if not num_draws:
        return rows
    stratum = systematic(probabilities, num_draws, uniform(seed, _PICK_STRATA, step))
    drawn = walk.draw(seed, stratum)
    rows["sample_id"] = partition.locate(stratum, drawn.row)
    rows["stratum"] = stratum
    rows["times_drawn"] = drawn.times_drawn
    rows["probability"] = probabilities[stratum] / walk.sizes[stratum]
    return rows[_shuffled(seed, step, num_draws)]


def _shuffled(seed: int, step: int, num_draws: int) -> Int64Array:
    """Neighbours in a plan fall to different ranks; without this, a rank would rehearse neighbouring strata."""
    key = np.repeat(keys(seed, _SHUFFLE, step), num_draws)
    return permute(key, np.full(num_draws, num_draws, dtype=np.int64), np.arange(num_draws, dtype=np.int64))
