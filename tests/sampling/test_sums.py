"""Decayed sums, against the reports themselves: each weighs by its age as seen from the latest one."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.sampling.step_slices import step_slices
from replay_service.sampling.sums import FIRST_VISITS, DecayedSums

LATER_VISITS = 1

NUM_STRATA = 3

reports = st.lists(
    st.tuples(
        st.integers(0, 60),
        st.sampled_from([FIRST_VISITS, LATER_VISITS]),
        st.integers(0, NUM_STRATA - 1),
        st.floats(0, 5),
    ),
    min_size=1,
    max_size=30,
)
half_lives = st.sampled_from([0.3, 1.0, 3.7, 8.0, 500.0, float("inf")])
Report = tuple[int, int, int, float]


def add(sums: DecayedSums, told: list[Report]) -> None:
    step, visit, stratum = np.array([each[:3] for each in told], dtype=np.int64).reshape(-1, 3).T
    sums.add(step_slices(step), visit, stratum, np.array([each[3] for each in told], dtype=np.float64))


def by_hand(told: list[Report], half_life: float) -> np.ndarray:
    """The sums as seen from the latest step; no step at a time."""
    sums, origin = np.zeros((4, NUM_STRATA)), max(step for step, *_ in told)
    for step, visit, stratum, damage in told:
        weight = 0.5 ** ((origin - step) / half_life)
        sums[visit, stratum] += weight
        sums[2 + visit, stratum] += weight * damage
    return sums


@given(reports, half_lives)
@settings(deadline=None)
def test_a_sum_is_that_of_the_reports_each_by_its_age(told: list[Report], half_life: float) -> None:
    sums = DecayedSums.zeros(NUM_STRATA, half_life)
    add(sums, told)
    assert sums.origin == max(step for step, *_ in told)
    assert 0 <= sums.passed < half_life
    np.testing.assert_allclose(sums.seen, by_hand(told, half_life), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(sums.seen, [*sums.count, *sums.damage])


@given(reports, half_lives, st.lists(st.integers(0, 30)))
@settings(deadline=None)
def test_however_reports_are_gathered_the_sums_are_the_same_to_the_bit(
    told: list[Report], half_life: float, cuts: list[int]
) -> None:
    one_by_one, gathered = (DecayedSums.zeros(NUM_STRATA, half_life) for _ in range(2))
    for each in told:
        add(one_by_one, [each])
    for begin, end in pairwise(sorted([0, *cuts, len(told)])):
        add(gathered, told[begin:end])
    assert one_by_one.sums.tobytes() == gathered.sums.tobytes()
    assert (one_by_one.reference, one_by_one.origin) == (gathered.reference, gathered.origin)


@given(reports, reports, half_lives, half_lives)
@settings(deadline=None)
def test_with_another_half_life_reports_keep_their_weight_and_fade_otherwise_from_then_on(
    before: list[Report], after: list[Report], half_life: float, another: float
) -> None:
    sums = DecayedSums.zeros(NUM_STRATA, half_life)
    add(sums, before)
    seen, origin = sums.seen, sums.origin
    sums.change_half_life(another)
    np.testing.assert_allclose(sums.seen, seen)
    later = [(origin + step, *others) for step, *others in after]
    add(sums, later)  # type: ignore[arg-type]
    fade = 0.5 ** ((sums.origin - origin) / another)
    expected = fade * seen + by_hand(later, another)  # type: ignore[arg-type]
    np.testing.assert_allclose(sums.seen, expected, rtol=1e-9, atol=1e-9)


def test_reports_of_ages_past_are_worth_nothing_and_do_no_harm() -> None:
    sums = DecayedSums.zeros(NUM_STRATA, 0.5)
    add(sums, [(2**40, FIRST_VISITS, 0, 1.0), (3, FIRST_VISITS, 0, 1.0), (2**62, LATER_VISITS, 1, 1.0)])
    assert np.isfinite(sums.sums).all()
    assert sums.count.tolist() == [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
