"""The planner: which samples the whole job rehearses in a step."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.controller import decide
from replay_service.sampling.cursors import Cursors
from replay_service.sampling.events import PLANNED_ROW, Adjusted, Planned
from replay_service.sampling.fold import pass_fence
from replay_service.sampling.partition import Partition
from replay_service.sampling.permutation import keys, uniforms
from replay_service.sampling.policies import systematic
from replay_service.sampling.response import change_of_ratio
from replay_service.sampling.run_state import RunState, whole_rows
from replay_service.sampling.step_slices import order_in_steps

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
    visits, told_by = learned.first_visits().since(state.steady_since), "first visits"
    present = visits.of_corpus()
    if present.nats is None:
        later = learned.all_visits().since(state.steady_since)
        # Better too low a number than none: without it the ratio would stay as it is for good.
        if (again := later.of_corpus()).nats is not None:
            visits, present, told_by = later, again, "first and later visits"
    change = 0.0
    if present.nats is not None:
        change = change_of_ratio(visits, learned.ratio_course(), step, config.budget.nats)
    pace = min(1.0, config.decision_steps / config.half_life_steps)
    decision = decide(config.budget, state.ratio, present, change, config.seeing_ratio, pace, told_by)
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
    cursors, learned = state.cursors.copy(), state.what_plans_learn_from()
    probabilities = state.probabilities()
    plans, first, carry = [], state.next_step, state.carry
    before = int(cursors.num_draws.sum())
    while first <= last_step:
        known = learned.policy_version
        pass_fence(learned, first)
        if learned.policy_version != known:
            probabilities = learned.probabilities()
        steps = range(first, _last_before_news(learned, last_step) + 1)
        num_draws, carry = whole_rows(state, steps, carry)
        rows = _draw(partition, probabilities, cursors, state.config.seed, steps, num_draws)
        ends = list(accumulate(num_draws, initial=0))
        for step, (begin, end) in zip(steps, pairwise(ends), strict=True):
            plans.append(Planned(step, learned.policy_version, before + begin, rows[begin:end]))
        before += ends[-1]
        first = steps.stop
    return plans


def _last_before_news(learned: RunState, last_step: int) -> int:
    """How far, up to `last_step`, plans know no more than `learned` does: in fenced mode, reports wait behind it."""
    fence = learned.config.fence
    return last_step if fence is None else min([last_step, *(step + fence - 1 for step in learned.held)])


def _draw(
    partition: Partition,
    probabilities: Float64Array,
    cursors: Cursors,
    seed: int,
    steps: range,
    num_draws: Sequence[int],
) -> np.ndarray:
    """The samples of neighbouring steps that are drawn by the same probabilities, step by step: PLANNED_ROW [n].

    What is drawn of a stratum does not depend on what is drawn of others, so it is all drawn at once.
    """
    every, num_each = np.arange(steps.start, steps.stop), np.array(num_draws)
    step = every.repeat(num_each)
    rows = np.empty(len(step), dtype=PLANNED_ROW)
    if not len(rows):
        return rows
    offsets = uniforms(keys(seed, _PICK_STRATA, every))
    stratum = systematic(probabilities, num_each, offsets)
    by_stratum = np.argsort(stratum, kind="stable")
    back = np.empty_like(by_stratum)
    back[by_stratum] = np.arange(len(back))
    stratum = stratum[by_stratum]
    drawn = cursors.draw(seed, stratum)
    rows["sample_id"] = partition.locate(stratum, drawn.row)
    rows["stratum"] = stratum
    rows["times_drawn"] = drawn.times_drawn
    rows["probability"] = probabilities[stratum] / cursors.sizes[stratum] * drawn.chance
    return rows.take(back[_shuffled(seed, step)])


def _shuffled(seed: int, step: Int64Array) -> Int64Array:
    """The places of each step's draws in an order of their own, int64 [n]; `step` (int64 [n]) ascends.

    Neighbours in a plan fall to different ranks; without this, a rank would rehearse neighbouring strata.
    """
    within = np.arange(len(step)) - step.searchsorted(step)
    return order_in_steps(step, keys(seed, _SHUFFLE, step, within))
