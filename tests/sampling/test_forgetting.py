from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.sampling.forgetting import LEAST_REPORTS, FirstVisits, Forgetting, estimate, trend
from replay_service.sampling.run_state import fold
from replay_service.sampling.runs import Run
from replay_service.sampling.sums import FIRST_VISITS, LATER_VISITS, DecayedSums
from tests.sampling.worlds import initial_state, planned, report_of

HALF_LIFE = 32.0
SHAPE = (6, 4)
PRIOR_WEIGHT = 8.0


def first_visits(sums: DecayedSums, shape: tuple[int, int] = SHAPE) -> FirstVisits:
    """What the sums tell of first visits, with ages counted from the latest report."""
    count, _, _, _, *others = sums.seen
    return FirstVisits(*(each.reshape(shape) for each in (count, *others))).moved(0.0, sums.passed)


def add(sums: DecayedSums, step: int, stratum: np.ndarray, excess: np.ndarray, visit: int = FIRST_VISITS) -> None:
    """Count reports of one step that tell of no damage."""
    num = len(stratum)
    sums.add([Run(step, 0, num)], np.full(num, visit), stratum, np.zeros(num), excess)


def one_step(seed: int, num_reports: int, biased: bool = False) -> tuple[float, Forgetting]:
    """The true forgetting of a corpus, and its estimate from some reports of one step."""
    random = np.random.default_rng(seed)
    sizes = random.integers(50, 2000, SHAPE)
    truth = 0.4 * random.random((6, 1)) + 0.3 * random.random((1, 4)) + 0.05 * random.standard_normal(SHAPE)
    share = (sizes * np.exp(4 * truth) if biased else sizes.astype(float)).ravel()
    drawn = random.choice(24, num_reports, p=share / share.sum())
    sums = DecayedSums.zeros(24, HALF_LIFE)
    excess = truth.ravel()[drawn] + 0.3 * random.standard_normal(num_reports)
    add(sums, 1, drawn, excess)
    found = estimate(sizes, first_visits(sums), PRIOR_WEIGHT)
    assert found is not None
    return float((truth * sizes).sum() / sizes.sum()), found


@pytest.mark.parametrize("num_reports", [40, 400, 4000])
def test_the_truth_lies_mostly_within_two_standard_errors(num_reports: int) -> None:
    runs = (one_step(seed, num_reports) for seed in range(200))
    held = [abs(truth - found.nats) < 2 * found.standard_error for truth, found in runs]
    assert np.mean(held) > 0.85


def test_rehearsing_what_is_damaged_most_does_not_bias_it() -> None:
    found = [one_step(seed, 4000, biased=True) for seed in range(50)]
    assert abs(np.mean([each.nats - truth for truth, each in found])) < 0.01
    # The mean of what was rehearsed would be far off.
    assert np.mean([truth for truth, _ in found]) > 0.1


def test_the_error_shrinks_with_reports() -> None:
    errors = [one_step(1, num)[1].standard_error for num in (40, 400, 4000)]
    assert errors[0] > errors[1] > errors[2] > 0


def over_time(
    seed: int, curve: Callable[[int], float], rate: float, num_steps: int = 200
) -> tuple[FirstVisits, np.ndarray]:
    """What is known after some steps of a run that rehearses `rate` rows a step, and the sizes of the strata.

    `curve` is the forgetting of the whole corpus at a step; the strata differ from it by what stays.
    """
    random = np.random.default_rng(seed)
    sizes = random.integers(50, 2000, SHAPE)
    share = (sizes / sizes.sum()).ravel()
    apart = (0.1 * random.standard_normal((6, 1)) + 0.1 * random.standard_normal((1, 4))).ravel()
    apart -= share @ apart
    sums = DecayedSums.zeros(24, HALF_LIFE)
    for step in range(num_steps):
        drawn = random.choice(24, int(rate * (step + 1)) - int(rate * step), p=share)
        excess = curve(step) + apart[drawn] + 0.3 * random.standard_normal(len(drawn))
        add(sums, step, drawn, excess)
    return first_visits(sums), sizes


def errors_of(
    curve: Callable[[int], float], rate: float, ahead: float = 0.0, without_trend: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """By how much estimates are off at the end of many runs, and by how many of their standard errors."""
    off = []
    for seed in range(40):
        visits, sizes = over_time(seed, curve, rate)
        if without_trend:
            visits = visits._replace(age=0 * visits.age, age_squares=0 * visits.age, aged_excess=0 * visits.age)
        found = estimate(sizes, visits, PRIOR_WEIGHT, ahead)
        assert found is not None
        off.append((found.nats - curve(199 + int(ahead)), found.standard_error))
    error = np.array(off)
    return error[:, 0], error[:, 0] / error[:, 1]


@pytest.mark.parametrize("slope", [0.006, -0.006])
@pytest.mark.parametrize("ahead", [0.0, 32.0])
def test_under_a_trend_it_tells_of_now_where_a_mean_lags(slope: float, ahead: float) -> None:
    def curve(step: int) -> float:
        return 1.0 + slope * step

    error, in_errors = errors_of(curve, rate=2.0, ahead=ahead)
    assert abs(error.mean()) < 0.02
    assert np.mean(np.abs(in_errors) < 2) > 0.9
    lagging, _ = errors_of(curve, rate=2.0, without_trend=True)
    assert abs(lagging.mean()) > 0.2


@pytest.mark.parametrize("rate", [0.4, 4.0])
def test_where_nothing_changes_it_is_hardly_noisier_than_a_mean(rate: float) -> None:
    error, in_errors = errors_of(lambda _: 0.5, rate)
    plain, _ = errors_of(lambda _: 0.5, rate, without_trend=True)
    assert error.std() < 1.25 * plain.std()
    assert abs(error.mean()) < 0.02
    assert np.mean(np.abs(in_errors) < 2) > 0.9


def test_a_shift_to_strata_that_are_damaged_more_is_no_trend() -> None:
    """Each stratum's own forgetting stays; the later, the more of the damaged one is rehearsed."""
    sums = DecayedSums.zeros(2, HALF_LIFE)
    random = np.random.default_rng(0)
    for step in range(100):
        stratum = (random.random(20) < step / 100).astype(np.int64)
        excess = 0.2 + 0.6 * stratum + 0.1 * random.standard_normal(20)
        add(sums, step, stratum, excess)
    visits = first_visits(sums, (2, 1))
    found = estimate(np.array([[500], [500]]), visits, PRIOR_WEIGHT)
    assert found is not None
    assert found.nats == pytest.approx(0.5, abs=0.02)
    # Without strata, the change of what is rehearsed would pass for half of all of it in a half-life.
    assert abs(trend(visits, PRIOR_WEIGHT).slope) * HALF_LIFE < 0.02
    as_one = FirstVisits(*(each.sum(axis=0, keepdims=True) for each in visits))
    assert trend(as_one, PRIOR_WEIGHT).slope * HALF_LIFE > 0.1


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 3), st.floats(-3, 3)), min_size=20, max_size=60),
    st.floats(-0.1, 0.1),
    st.floats(0, 100),
)
@settings(deadline=None)
def test_moving_the_sums_is_moving_each_report(
    reports: list[tuple[int, int, float]], slope: float, ahead: float
) -> None:
    """Whatever order the steps come in: decayed sums are those of the reports themselves."""
    told, moved = DecayedSums.zeros(4, HALF_LIFE), np.zeros((3, 4))
    for step, stratum, excess in reports:
        add(told, step, np.array([stratum]), np.array([excess]))
    for step, stratum, excess in reports:
        age = told.origin - step
        now = excess + slope * (age + ahead)
        moved[:, stratum] += 0.5 ** (age / HALF_LIFE) * np.array([1.0, now, now**2])
    found = first_visits(told, (2, 2)).moved(slope, ahead)
    for each, expected in zip(found, moved, strict=False):
        np.testing.assert_allclose(each.ravel(), expected, rtol=1e-9, atol=1e-9)


def test_of_too_few_reports_nothing_is_said() -> None:
    few = np.full((2, 2), LEAST_REPORTS / 4 - 0.1)
    assert estimate(np.ones((2, 2), dtype=np.int64), FirstVisits(*[few] * 6), PRIOR_WEIGHT) is None


def test_reports_of_one_step_have_no_trend_however_old_they_are() -> None:
    sums, nothing = DecayedSums.zeros(1, HALF_LIFE), np.zeros(64, dtype=np.int64)
    add(sums, 3, nothing, np.linspace(0.0, 1.0, 64))
    add(sums, 10, nothing[:1], np.zeros(1), visit=LATER_VISITS)
    assert trend(first_visits(sums, (1, 1)), PRIOR_WEIGHT)[:2] == (0.0, 0.0)


def test_second_visits_tell_nothing() -> None:
    state = initial_state([10], global_batch_size=10, injection_ratio="1")
    (first,) = planned(state, 0)
    fold(state, report_of(0, first.rows["sample_id"], loss=1.5, base_loss=1.0))
    before = state.forgetting()
    assert before is not None
    assert before.nats == pytest.approx(0.5)
    (second,) = planned(state, 1)
    assert (second.rows["times_drawn"] == 2).all()
    fold(state, report_of(1, second.rows["sample_id"], loss=9.0, base_loss=1.0))
    after = state.forgetting()
    assert after is not None
    assert after.nats == pytest.approx(0.5)
