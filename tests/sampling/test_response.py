import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_service.sampling.forgetting import FirstVisits
from replay_service.sampling.latest import REPORT_ROW
from replay_service.sampling.response import MOST_FALL, MOST_RISE, RatioCourse, change_of_ratio

BUDGET = 0.2
HALF_LIFE = 20.0
SIZES = np.array([500, 300, 100, 100])


def course_of(*changes: tuple[int, float]) -> RatioCourse:
    steps, ratios = zip(*changes, strict=True)
    return RatioCourse(np.array(steps, dtype=np.float64), np.array(ratios))


def visits_of(excess: np.ndarray, step: np.ndarray, stratum: np.ndarray | None = None) -> FirstVisits:
    """First visits that were drawn in proportion to the strata's sizes."""
    reports = np.zeros(len(step), dtype=REPORT_ROW)
    reports["step"], reports["excess_nats"] = step, excess
    reports["stratum"] = 0 if stratum is None else stratum
    chance = SIZES / SIZES.sum()
    reports["chance"] = chance[reports["stratum"]]
    return FirstVisits(reports, int(step.max()), SIZES, chance, 2, HALF_LIFE, 8.0)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0.001, 0.5)), min_size=1, max_size=5),
    st.floats(0.2, 1.0),
    st.floats(5.0, 100.0),
)
def test_the_response_solves_the_differential_equation(
    changes: list[tuple[int, float]], elasticity: float, lag: float
) -> None:
    ends = np.cumsum([0, *(length for length, _ in changes)])
    course = course_of(*zip(ends[:-1].tolist(), [ratio for _, ratio in changes], strict=True))
    found = course.response(np.arange(ends[-1] + 1.0), elasticity, lag)
    lost, last = 0.0, changes[-1][1]
    for (begin, end), (_, ratio) in zip(pairwise(ends), changes, strict=True):
        for step in range(begin, end):
            assert found[step] == pytest.approx(lost)
            lost += ((ratio / last) ** -elasticity - lost) * (1 - math.exp(-1 / lag))


def test_a_course_that_begins_later_begins_at_rest() -> None:
    found = course_of((100, 0.04), (120, 0.01)).response(np.array([0.0, 110.0, 1e6]), 0.5, 20.0)
    assert found == pytest.approx([0.5, 0.5, 1.0])


@pytest.mark.parametrize(("noise", "tolerance"), [(0.0, 1e-4), (0.01, 0.005)])
@pytest.mark.parametrize(("elasticity", "lag", "scale"), [(0.5, 1.5, 0.03), (0.5, 1.5, 0.04), (0.3, 0.5, 0.06)])
def test_of_a_job_like_one_of_its_models_it_finds_the_ratio(
    elasticity: float, lag: float, scale: float, noise: float, tolerance: float
) -> None:
    course = course_of((0, 0.02), (40, 0.03))
    step = np.arange(60).repeat(4)
    lost = scale * 0.03**-elasticity * course.response(np.arange(61.0), elasticity, lag * HALF_LIFE)
    random = np.random.default_rng(1)
    visits = visits_of(lost[step] * (1 + noise * random.standard_normal(len(step))), step)
    change = change_of_ratio(visits, course, 60, BUDGET)
    then = course_of((0, 0.02), (40, 0.03), (60, 0.03 * math.exp(change)))
    after = then.response(np.array([60.0 + 2 * HALF_LIFE]), elasticity, lag * HALF_LIFE)
    met = scale * (0.03 * math.exp(change)) ** -elasticity * after[0]
    assert math.log(MOST_FALL) < change < math.log(MOST_RISE)
    assert met == pytest.approx(BUDGET, rel=tolerance)


def test_where_strata_differ_it_is_the_corpus_that_counts() -> None:
    course, step = course_of((0, 0.03)), np.arange(200).repeat(3)
    random = np.random.default_rng(2)
    stratum = random.choice(4, len(step), p=SIZES / SIZES.sum())
    lost = BUDGET * course.response(step.astype(np.float64), 0.5, 1.5 * HALF_LIFE)
    of_stratum = np.array([0.5, 1.0, 2.0, 2.5])
    uneven = visits_of(lost * of_stratum[stratum], step, stratum)
    assert of_stratum @ SIZES / SIZES.sum() == 1.0
    assert change_of_ratio(uneven, course, 200, BUDGET) == pytest.approx(0.0, abs=0.1)


def test_where_nothing_is_forgotten_it_falls_and_where_too_much_is_it_rises() -> None:
    course, step = course_of((0, 0.03)), np.arange(60)
    for excess, factor in ((-0.1, MOST_FALL), (0.0, MOST_FALL), (9.0, MOST_RISE)):
        change = change_of_ratio(visits_of(np.full(60, excess), step), course, 60, BUDGET)
        assert change == pytest.approx(math.log(factor))


def test_a_run_that_rehearsed_nothing_before_gets_an_answer() -> None:
    course, step = course_of((0, 0.0), (50, 0.01)), 50 + np.arange(30)
    change = change_of_ratio(visits_of(np.full(30, 0.4), step), course, 80, BUDGET)
    assert math.log(MOST_FALL) <= change <= math.log(MOST_RISE)


def test_with_the_shortest_half_life_it_still_answers() -> None:
    visits = visits_of(np.full(60, 9.0), np.arange(60))
    short = FirstVisits(visits.reports, visits.step, SIZES, visits.chance, 2, 1e-3, 8.0)
    assert change_of_ratio(short, course_of((0, 0.03)), 60, BUDGET) == pytest.approx(math.log(MOST_RISE))
