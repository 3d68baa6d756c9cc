import copy
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.sampling.events import Adopted, Configured, Finished
from replay_service.sampling.fold import fold
from tests.sampling.worlds import image, initial_state, lived, plan_by_hand, planned, report_of


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_reading_the_probabilities_changes_nothing(data: st.DataObject) -> None:
    _, state = lived(data)
    before = image(copy.deepcopy(state))
    assert state.probabilities().sum() == pytest.approx(1.0)
    assert image(state) == before


def test_probabilities_are_those_of_the_policy_as_it_is_and_of_nobody_to_change() -> None:
    state = initial_state([50, 50])
    fold(state, plan_by_hand(0, [1, 2], [0, 1]))
    seen = [state.probabilities()]
    report = report_of(0, [1, 2], num_flips=[8, 1])
    for event in (report, Configured(0, state.config.changed(floor=0.9)), Adopted(0, 2, (50, 80))):
        fold(state, event)
        seen.append(state.probabilities())
    assert state.probabilities() is seen[-1]
    assert len({each.tobytes() for each in seen}) == 4
    with pytest.raises(ValueError, match="read-only"):
        seen[-1][0] = 1.0


def test_before_any_report_every_sample_is_equally_likely() -> None:
    state = initial_state([10, 30, 20, 40])
    assert state.probabilities() == pytest.approx(np.array([0.1, 0.3, 0.2, 0.4]))


def test_a_damaged_stratum_is_drawn_more_often_from_then_on() -> None:
    state = initial_state([50, 50])
    fold(state, plan_by_hand(0, [1, 2, 3, 4], [0, 0, 1, 1]))
    fold(state, report_of(0, [1, 2, 3, 4], num_flips=[8, 8, 1, 1]))
    probabilities = state.probabilities()
    assert probabilities[0] > 0.55 > 0.5 > probabilities[1] > 0.05


def test_draws_repeat_samples_once_all_have_been_drawn() -> None:
    state = initial_state([4, 4], held_back=0.0)
    assert state.repeat_share() == 0.0
    while state.cursors.num_draws.min() < 4:
        planned(state, state.next_step)
    assert state.repeat_share() == pytest.approx(1.0)


def test_damage_is_known_from_the_first_flip_on() -> None:
    state = initial_state([5, 9])
    fold(state, plan_by_hand(0, [1, 2], [0, 1]))
    fold(state, report_of(0, [1], num_flips=0))
    assert not state.has_damage()
    fold(state, report_of(0, [2], num_flips=1))
    assert state.has_damage()


def test_rows_are_due_by_all_ratios_that_were_in_force_and_are_rehearsed_to_within_one() -> None:
    state = initial_state([50, 50], global_batch_size=10, injection_ratio="0.25")
    planned(state, 5)
    fold(state, Configured(5, state.config.changed(injection_ratio="0.1")))
    planned(state, 8)
    assert state.rows_due_so_far == 6 * Fraction(1, 4) * 10 + 3 * Fraction(1, 10) * 10
    assert state.rows_rehearsed == sum(each.num_awaited for each in state.pending.values())
    assert 0 <= state.rows_due_so_far - state.rows_rehearsed < 1


@pytest.mark.parametrize(("num_steps", "asked_further", "is_finished"), [(4, 3, True), (2, 3, True), (4, 4, False)])
def test_a_job_has_ended_until_a_step_after_its_end_is_planned(
    num_steps: int, asked_further: int, is_finished: bool
) -> None:
    state = initial_state([50, 50])
    planned(state, 3)
    assert not state.is_finished
    fold(state, Finished(3, num_steps))
    assert state.is_finished
    planned(state, asked_further)
    assert state.is_finished is is_finished
