import numpy as np
import pytest

from replay_service.sampling.forgetting import LEAST_REPORTS, estimate
from replay_service.sampling.run_state import fold
from tests.sampling.worlds import initial_state, planned, report_of


def simulated(seed: int, num_reports: int, biased: bool = False) -> tuple[float, float, float]:
    """The true forgetting of a corpus, and the estimate with its error from some reports."""
    random = np.random.default_rng(seed)
    sizes = random.integers(50, 2000, (6, 4))
    truth = 0.4 * random.random((6, 1)) + 0.3 * random.random((1, 4)) + 0.05 * random.standard_normal((6, 4))
    share = (sizes * np.exp(4 * truth) if biased else sizes.astype(float)).ravel()
    drawn = random.choice(24, num_reports, p=share / share.sum())
    excess = truth.ravel()[drawn] + 0.3 * random.standard_normal(num_reports)
    count, total, squares = (
        np.bincount(drawn, each, 24).reshape(6, 4) for each in (np.ones(num_reports), excess, excess**2)
    )
    found = estimate(sizes, count, total, squares, 8.0)
    assert found is not None
    return float((truth * sizes).sum() / sizes.sum()), *found


@pytest.mark.parametrize("num_reports", [40, 400, 4000])
def test_the_truth_lies_mostly_lies_within_two_standard_errors(num_reports: int) -> None:
    held = [abs(truth - nats) < 2 * error for truth, nats, error in (simulated(s, num_reports) for s in range(200))]
    assert np.mean(held) > 0.85


def test_rehearsing_what_is_damaged_most_does_not_bias_it() -> None:
    found = [simulated(seed, 4000, biased=True) for seed in range(50)]
    assert abs(np.mean([nats - truth for truth, nats, _ in found])) < 0.01
    # The mean of what was rehearsed would be far off.
    assert np.mean([truth for truth, _, _ in found]) > 0.1


def test_the_error_shrinks_with_reports() -> None:
    errors = [simulated(1, num)[2] for num in (40, 400, 4000)]
    assert errors[0] > errors[1] > errors[2] > 0


def test_of_too_few_reports_nothing_is_said() -> None:
    few = np.full((2, 2), LEAST_REPORTS / 4 - 0.1)
    assert estimate(np.ones((2, 2), dtype=np.int64), few, few, few, 8.0) is None


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
