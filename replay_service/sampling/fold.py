"""The fold: how each event of a run's journal changes the run's state."""

import itertools
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final

import numpy as np

from replay_service.sampling.damage import DAMAGE_OF
from replay_service.sampling.events import (
    Adjusted,
    Adopted,
    Configured,
    Event,
    Finished,
    Planned,
    Reported,
    Sealed,
    Trained,
    stacked,
)
from replay_service.sampling.injection import exact_ratio
from replay_service.sampling.latest import REPORT_ROW
from replay_service.sampling.pending import Awaited, Pending
from replay_service.sampling.run_config import RunConfig
from replay_service.sampling.run_state import HELD_ROW, RunState, in_canonical_order, whole_rows
from replay_service.sampling.step_slices import StepSlice, step_slices
from replay_service.sampling.sums import FIRST_VISITS, LATER_VISITS, DecayedSums


def fold(state: RunState, event: Event) -> None:
    """Advance `state` by one event of its journal. It reads nothing else, so every fold of a journal agrees.

    The event has been checked before it was written down; an event that does not fit the state is an error of ours.
    """
    if isinstance(event, Planned):
        _fold_planned(state, [event])
    elif isinstance(event, Reported):
        _fold_reported(state, [event])
    elif isinstance(event, Configured):
        _fold_configured(state, event.config)
    elif isinstance(event, Adopted):
        _fold_adopted(state, event.generation, event.sizes)
    elif isinstance(event, Adjusted):
        state.set_ratio(exact_ratio(event.injection_ratio))
    elif isinstance(event, Sealed):
        state.pending.pop(event.step, None)
    elif isinstance(event, Trained):
        state.trained.add(event.rank, event.step + 1, event.counts)
    elif isinstance(event, Finished):
        state.job_end = event.end
    else:
        state.closed = True


def fold_all(state: RunState, events: Iterable[Event]) -> None:
    """Fold events one after the other.

    Neighbouring plans are folded at once, and so are neighbouring reports, which comes to the same.
    """
    for kind, neighbours in groupby(events, type):
        alike = list(neighbours)
        if kind is Planned:
            _fold_planned(state, [event for event in alike if isinstance(event, Planned)])
        elif kind is Reported:
            _fold_reported(state, [event for event in alike if isinstance(event, Reported)])
        else:
            for event in alike:
                fold(state, event)


def _fold_planned(state: RunState, plans: Sequence[Planned]) -> None:
    steps = range(state.next_step, state.next_step + len(plans))
    assert [plan.step for plan in plans] == list(steps), f"no plans of the steps from {state.next_step} on"
    _, state.carry = whole_rows(state, steps, state.carry)
    stratum = np.concatenate([plan.rows["stratum"] for plan in plans])
    state.cursors.advance(state.config.seed, np.sort(stratum).astype(np.int64))
    state.pending.update(Pending.of_steps({plan.step: plan.rows for plan in plans}))
    for step in steps:
        pass_fence(state, step)
        state.pending.pop(step - state.config.report_window_steps, None)
    state.next_step = steps.stop


def _fold_configured(state: RunState, config: RunConfig) -> None:
    if (config.injection_ratio, config.budget.start()) != (state.config.injection_ratio, state.config.budget.start()):
        state.set_ratio(config.ratio)
    if any(getattr(config, name) != getattr(state.config, name) for name in _STEERING):
        state.steady_since = state.next_step
    if _damage_unit(config) != _damage_unit(state.config):
        state.recent = DecayedSums.zeros(state.num_strata, config.half_life_steps)
        state.held.clear()
    elif config.half_life_steps != state.config.half_life_steps:
        state.recent.change_half_life(config.half_life_steps)
    state.config = config
    state.policy_version += 1


def _fold_adopted(state: RunState, generation: int, sizes: tuple[int, ...]) -> None:
    state.cursors.grow(np.array(sizes, dtype=np.int64))
    state.totals.grow(len(sizes))
    state.recent.grow(len(sizes))
    state.generation, state.generation_since = generation, state.next_step
    state.policy_version += 1


_STEERING: Final = (
    "schedule",
    "policy",
    "sharpness",
    "floor",
    "signal",
    "learnable_nats",
    "delta_nats",
    "prior_weight",
)
"""Settings of which a change may make forgetting take another course than the injection ratio accounts for."""


def _damage_unit(config: RunConfig) -> tuple[str, float, float]:
    """Sums of damage in different units do not add up, so a change of unit begins them anew."""
    return config.signal, config.learnable_nats, config.delta_nats


def _fold_reported(state: RunState, reports: Sequence[Reported]) -> None:
    """Fold one or more reports: the same additions, in the same order, as folding one after the other."""
    rows, slices = stacked([each.rows for each in reports]), _slices_of(reports)
    plan = Awaited(state.pending, slices, np.ascontiguousarray(rows["sample_id"])).take()
    was_measured, num_reports = rows["num_tokens"] > 0, len(reports)
    if np.count_nonzero(was_measured) < len(rows):
        step, report = (
            np.repeat(each, [len(every.rows) for every in reports])[was_measured]
            for each in ([each.step for each in reports], np.arange(num_reports))
        )
        slices, num_reports = step_slices(step), int(np.count_nonzero(np.bincount(report)))
        plan, rows = plan[was_measured], rows[was_measured]
    _fold_measured(state, slices, plan, rows)
    if state.config.fence is None:
        state.policy_version += num_reports


def _slices_of(reports: Sequence[Reported]) -> list[StepSlice]:
    """The slices of steps in the rows of reports."""
    slices, begin = list[StepSlice](), 0
    for each in reports:
        end = begin + len(each.rows)
        if slices and slices[-1].step == each.step:
            slices[-1] = StepSlice(each.step, slices[-1].begin, end)
        else:
            slices.append(StepSlice(each.step, begin, end))
        begin = end
    return slices


def _fold_measured(state: RunState, slices: Sequence[StepSlice], plan: np.ndarray, rows: np.ndarray) -> None:
    """Fold the losses `rows` (REPORTED_ROW [n]) of the samples in `plan` (PLANNED_ROW [n])."""
    measured = np.empty(len(rows), dtype=HELD_ROW)
    measured["sample_id"], measured["stratum"] = plan["sample_id"], plan["stratum"]
    measured["visit"] = plan["times_drawn"] != 1
    measured["chance"] = plan["probability"] * state.cursors.sizes[plan["stratum"]]
    measured["excess_nats"] = rows["loss_nats"] - rows["base_loss_nats"]
    measured["damage"] = DAMAGE_OF[state.config.signal](rows, state.config.learnable_nats, state.config.delta_nats)
    state.totals.add(measured["stratum"].astype(np.int64), rows, measured["excess_nats"])
    if state.config.fence is None:
        _learn(state, slices, measured)
        return
    for step, begin, end in slices:
        state.held[step] = stacked([state.held.get(step, measured[:0]), measured[begin:end]])


def _learn(state: RunState, slices: Sequence[StepSlice], measured: np.ndarray) -> None:
    """Let plans know what was measured: HELD_ROW [n], whose rows of each step are at `slices`."""
    visit, stratum = measured["visit"].astype(np.int64), measured["stratum"].astype(np.int64)
    state.recent.add(slices, visit, stratum, measured["damage"])
    reports = np.empty(len(measured), dtype=REPORT_ROW)
    for step, begin, end in slices:
        reports["step"][begin:end] = step
    for name in ("stratum", "chance", "excess_nats"):
        reports[name] = measured[name]
    is_later = visit > 0
    if not np.count_nonzero(is_later):
        state.latest[FIRST_VISITS].add(reports)
        return
    state.latest[FIRST_VISITS].add(reports[~is_later])
    state.latest[LATER_VISITS].add(reports[is_later])


def pass_fence(state: RunState, step: int) -> None:
    """In fenced mode, learn what the plan of `step` may know: the reports of steps up to `step` minus the lag."""
    if state.config.fence is None:
        return
    passing = sorted(held for held in state.held if held <= step - state.config.fence)
    if passing:
        parts = [in_canonical_order(state.held.pop(each)) for each in passing]
        measured, ends = stacked(parts), [*itertools.accumulate(map(len, parts))]
        _learn(state, list(map(StepSlice, passing, [0, *ends], ends)), measured)
        state.policy_version += len(passing)
