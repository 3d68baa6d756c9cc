"""Fenced feedback: the plan of a step knows the reports of the steps up to the lag before it, and no others."""

import copy
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.sampling.events import Closed, Configured, Event, Planned, Sealed, surviving
from replay_service.sampling.fold import fold
from replay_service.sampling.run_config import Feedback
from replay_service.sampling.run_state import RunState
from tests.sampling.worlds import image, initial_state, planned, plans_of, report_of, same_plan

LAG = 3
NUM_STEPS = 14
pure = settings(max_examples=30, deadline=None)


def fenced(mode: str = "fenced", **config: object) -> RunState:
    feedback = Feedback(mode, LAG)  # type: ignore[arg-type]
    return initial_state([9, 20, 4, 15], num_quantiles=2, injection_ratio="1", feedback=feedback, floor=0.0, **config)


def flips_of(step: int, sample_id: int) -> int:
    return (7 * sample_id + step) % 11


def reported(state: RunState, step: int, sample_id: int, rank: int = 0) -> Event:
    """Report one sample, measured as its step and its id say, and fold the report in."""
    event = report_of(step, [sample_id], rank=rank, num_tokens=10, num_flips=flips_of(step, sample_id))
    fold(state, event)
    return event


def waiting(state: RunState) -> list[tuple[int, int]]:
    return [(step, sample) for step, each in state.pending.items() for sample in each.rows["sample_id"].tolist()]


def a_life(seed: int) -> tuple[list[Event], RunState]:
    """Reports come one by one, in an order and as late as the seed says, but never too late for the next plan."""
    state, rng, journal = fenced(), random.Random(seed), list[Event]()
    for step in range(NUM_STEPS):
        chances = waiting(state)
        rng.shuffle(chances)
        journal += [
            reported(state, each, sample) for each, sample in chances if each <= step - LAG or rng.random() < 0.5
        ]
        journal += planned(state, step)
    return journal, state


def plans_in(journal: list[Event]) -> list[Planned]:
    return [event for event in journal if isinstance(event, Planned)]


@given(st.integers(0, 2**32))
@pure
def test_plans_do_not_depend_on_when_and_in_which_order_reports_came(seed: int) -> None:
    (left, _), (right, _) = a_life(0), a_life(seed)
    assert all(map(same_plan, plans_in(left), plans_in(right)))


@given(st.integers(0, 2**32))
@pure
def test_folding_a_fenced_journal_again_gives_the_same_state(seed: int) -> None:
    journal, state = a_life(seed)
    again = fenced()
    for event in journal:
        fold(again, event)
    assert image(again) == image(state)


@given(st.integers(1, LAG), st.integers(0, 2**32))
@pure
def test_a_window_is_planned_as_its_steps_one_by_one(num_steps: int, seed: int) -> None:
    _, state = a_life(seed)
    for step in state.awaited_before(state.next_step + num_steps - 1):
        for each in state.pending[step].rows["sample_id"].tolist():
            reported(state, step, each)
    before, last_step = image(copy.deepcopy(state)), state.next_step + num_steps - 1
    at_once = plans_of(state, last_step)
    assert image(state) == before
    one_by_one = [plan for step in range(state.next_step, last_step + 1) for plan in planned(state, step)]
    assert all(map(same_plan, at_once, one_by_one))


def test_a_plan_knows_the_reports_of_the_steps_up_to_the_lag_and_no_later_ones() -> None:
    state = fenced()
    planned(state, LAG)
    unlearned = state.probabilities()
    for step, sample in waiting(state):
        reported(state, step, sample)
    assert state.probabilities().tobytes() == unlearned.tobytes()
    before = copy.deepcopy(state)
    (first,) = planned(state, LAG + 1)
    assert first.policy_version == before.policy_version + 2
    assert state.probabilities().tobytes() != unlearned.tobytes()
    assert state.recent.origin == 1
    planned(state, LAG + 2)
    assert state.recent.origin == 2


def test_a_plan_waits_for_the_steps_up_to_the_lag() -> None:
    state = fenced()
    planned(state, 5)
    assert state.awaited_before(LAG - 1) == []
    assert state.awaited_before(LAG + 1) == [0, 1]
    for sample in state.pending[0].rows["sample_id"].tolist():
        reported(state, 0, sample)
    assert state.awaited_before(LAG + 1) == [1]


def test_a_run_that_takes_the_latest_reports_waits_for_none() -> None:
    state = fenced("latest")
    planned(state, 5)
    assert state.awaited_before(1000) == []


def test_a_sealed_step_is_awaited_no_longer_and_what_came_of_it_counts() -> None:
    state = fenced()
    planned(state, LAG - 1)
    reported(state, *waiting(state)[0])
    fold(state, Sealed(0))
    fold(state, Sealed(0))
    assert state.awaited_before(LAG) == []
    planned(state, LAG)
    assert state.recent.count.sum() == 1


@pytest.mark.parametrize(("changes", "num_held"), [({"signal": "excess_loss"}, 0), ({"injection_ratio": "0.5"}, 1)])
def test_what_is_held_back_in_another_unit_of_damage_is_dropped(changes: dict[str, object], num_held: int) -> None:
    state = fenced()
    planned(state, 1)
    reported(state, *waiting(state)[0])
    fold(state, Configured(1, state.config.changed(**changes)))
    planned(state, LAG)
    assert state.recent.count.sum() == num_held
    assert state.ratio_since == (2 if "injection_ratio" in changes else 0)


def test_a_closed_run_says_so() -> None:
    state = fenced()
    fold(state, Closed(-1))
    assert state.closed


@given(st.integers(0, 2**32), st.integers(-1, NUM_STEPS - 1))
@pure
def test_what_survives_a_rewind_leads_to_the_plans_that_were_made(seed: int, step: int) -> None:
    journal, _ = a_life(seed)
    again = fenced()
    for event in surviving(journal, step):
        fold(again, event)
    assert again.next_step == step + 1
    for each, sample in waiting(again):
        reported(again, each, sample)
    for plan in plans_in(journal)[step + 1 : step + 1 + LAG]:
        (made_again,) = planned(again, plan.step)
        assert same_plan(made_again, plan)


def test_reports_of_a_step_are_learned_in_the_order_of_the_samples() -> None:
    forwards, backwards = fenced(), fenced()
    for state, direction in ((forwards, 1), (backwards, -1)):
        planned(state, 0)
        for rank, (step, sample) in enumerate(waiting(state)[::direction]):
            reported(state, step, sample, rank)
        planned(state, LAG)
    np.testing.assert_array_equal(forwards.recent.damage, backwards.recent.damage)
    assert image(forwards) == image(backwards)
