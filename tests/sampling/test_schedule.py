import math
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.sampling.injection import as_decimal
from replay_service.sampling.run_config import RunConfig
from replay_service.sampling.schedule import GRAIN, Curve, Schedule
from tests.sampling.worlds import initial_state, planned

P = Fraction(1, 10)


def curve_of(name: str) -> Schedule:
    if name == "constant":
        return Schedule()
    if name == "steps":
        return Schedule("steps", points=((5, "0.3"), (20, "0.02")))
    return Schedule(name, 30, "0.02" if name != "warmup" else "0")  # type: ignore[arg-type]


def test_a_line_leads_from_one_ratio_to_the_other_and_stays_there() -> None:
    line = Schedule("linear", 10, "0.05")
    assert [line.at(step, P) for step in (0, 5, 10, 99)] == [P, Fraction(75, 1000), Fraction(1, 20), Fraction(1, 20)]


def test_ratios_between_are_rounded_down_to_billionths_so_that_plans_stay_what_they_were() -> None:
    line, half = Schedule("linear", 3, "0"), Schedule("cosine", 6, "0")
    assert [line.at(step, P) for step in (1, 2)] == [Fraction(66_666_666, 10**9), Fraction(33_333_333, 10**9)]
    assert [half.at(step, P) for step in (1, 2)] == [Fraction(93_301_270, 10**9), Fraction(75_000_000, 10**9)]


def test_a_warm_up_begins_with_nothing() -> None:
    assert [Schedule("warmup", 4).at(step, P) for step in range(6)] == [0, P / 4, P / 2, 3 * P / 4, P, P]


def test_steps_hold_until_the_next_one() -> None:
    steps = curve_of("steps")
    assert [steps.at(step, P) for step in (0, 4, 5, 19, 20, 1000)] == [
        P,
        P,
        Fraction(3, 10),
        Fraction(3, 10),
        Fraction(1, 50),
        Fraction(1, 50),
    ]


@given(st.integers(1, 10**9), st.integers(0, 2 * 10**9))
def test_half_a_cosine_is_that_of_the_standard_library(num_steps: int, step: int) -> None:
    share = min(step / num_steps, 1.0)
    expected = 0.02 + (0.1 - 0.02) * (1 + math.cos(math.pi * share)) / 2
    assert float(Schedule("cosine", num_steps, "0.02").at(step, P)) == pytest.approx(expected, abs=2 * float(GRAIN))


@pytest.mark.parametrize("name", get_args(Curve))
@given(st.integers(0, 40))
@settings(max_examples=40)
def test_no_step_is_above_the_most(name: str, step: int) -> None:
    schedule = curve_of(name)
    assert 0 <= schedule.at(step, P) <= schedule.most(P) <= 1


@pytest.mark.parametrize("mode", ["replace", "add"])
@pytest.mark.parametrize("name", get_args(Curve))
@given(st.integers(0, 30), st.integers(1, 30), st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_over_any_window_the_count_is_within_one_of_what_is_due(
    mode: str, name: str, first: int, width: int, batch: int
) -> None:
    schedule = curve_of(name)
    state = initial_state([500], global_batch_size=batch, injection_ratio="0.1", injection_mode=mode, schedule=schedule)
    plans = planned(state, first + width)
    ratios = [schedule.at(step, P) for step in range(first, first + width)]
    due = sum((p if mode == "replace" else p / (1 - p)) * batch for p in ratios)
    assert abs(sum(len(plan.rows) for plan in plans[first : first + width]) - due) < 1


def test_added_rows_are_the_written_share_of_the_whole_batch() -> None:
    state = initial_state([500], global_batch_size=8, injection_ratio="0.2", injection_mode="add")
    num_rehearsed = sum(len(plan.rows) for plan in planned(state, 99))
    assert num_rehearsed / (100 * 8 + num_rehearsed) == pytest.approx(0.2)


@pytest.mark.parametrize("name", get_args(Curve))
def test_a_configuration_comes_back_from_its_json(name: str) -> None:
    config = RunConfig(8, "0.1", schedule=curve_of(name))
    again = RunConfig.from_json(config.to_json())
    assert (again, hash(again.schedule)) == (config, hash(config.schedule))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"curve": "spiral"}, "schedule.curve"),
        ({"curve": "linear"}, "schedule.num_steps"),
        ({"curve": "constant", "num_steps": 5}, "schedule.num_steps"),
        ({"curve": "steps"}, "schedule.points"),
        ({"points": ((5, "0.1"),)}, "schedule.points"),
        ({"curve": "steps", "points": ((0, "0.1"),)}, "ascending"),
        ({"curve": "steps", "points": ((7, "0.1"), (3, "0.1"))}, "ascending"),
        ({"curve": "steps", "points": ((7, "1.1"),)}, "1.1"),
        ({"curve": "linear", "num_steps": 5, "final_ratio": "-1"}, "-1"),
    ],
)
def test_a_curve_that_makes_no_sense_is_refused(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Schedule(**arguments)  # type: ignore[arg-type]


def test_nothing_can_be_added_to_nothing() -> None:
    with pytest.raises(ValueError, match="injection_mode add"):
        RunConfig(8, "1", injection_mode="add")


def test_a_rise_of_the_ratio_is_in_what_a_step_can_need() -> None:
    assert RunConfig(8, "0.1", schedule=curve_of("steps")).most_rows() == math.ceil(0.3 * 8)
    assert RunConfig(8, "0.5", injection_mode="add").most_rows() == 8
    assert np.isclose(float(RunConfig(8, "auto").most_ratio()), 0.2)


def test_the_ratio_is_told_as_it_was_written_or_as_the_curve_has_it() -> None:
    assert initial_state([50], injection_ratio="0.50").ratio_now() == "0.50"
    state = initial_state([50], injection_ratio="0.5", schedule=Schedule("linear", 4, "0"))
    planned(state, 1)
    assert state.ratio_now() == "0.25"
    assert initial_state([50], injection_ratio="auto").ratio_now() == "0.01"
    assert as_decimal(Fraction(0)) == "0"


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(),
        Schedule("warmup", 7),
        Schedule("linear", 7, "0.02"),
        Schedule("linear", 7, "0.9"),
        Schedule("cosine", 7, "0.9"),
        Schedule("steps", points=((3, "0.5"), (6, "0.1"))),
    ],
)
def test_the_greatest_ratio_is_that_of_the_step_which_has_it(schedule: Schedule) -> None:
    assert schedule.most(P) == max(schedule.at(step, P) for step in range(30))
