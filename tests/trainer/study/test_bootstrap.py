import numpy as np
import pytest

from replay_trainer.study.bootstrap import by_target, holm, interval, p_value, resamples


def test_the_weights_of_each_target_sum_to_one_and_the_first_row_is_the_sample() -> None:
    target_of_pair = np.array([0, 0, 0, 1, 1, 2])
    weights = resamples(target_of_pair, 50)
    for target in range(3):
        assert weights[:, target_of_pair == target].sum(axis=1) == pytest.approx(np.ones(51))
    assert weights[0] == pytest.approx([1 / 3] * 3 + [1 / 2] * 2 + [1])


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_intervals_of_a_mean_hold_it_however_few_seeds_there_are(num_seeds: int) -> None:
    rng, pairs = np.random.default_rng(0), np.repeat(np.arange(3), num_seeds)
    weights = resamples(pairs, 400)
    found = [interval(by_target(weights, pairs, rng.standard_normal(len(pairs))).mean(axis=1)) for _ in range(400)]
    held = np.mean([each.low <= 0 <= each.high for each in found])
    assert 0.9 <= held <= 0.98


def test_means_by_target_keep_the_other_dimensions() -> None:
    pairs, values = np.array([0, 1, 1]), np.arange(12.0).reshape(3, 2, 2)
    found = by_target(resamples(pairs, 3), pairs, values)
    assert found.shape == (4, 2, 2, 2)
    assert found[0, 1] == pytest.approx(values[1:].mean(axis=0))


def test_an_interval_holds_the_percentiles_and_nothing_where_nothing_is_known() -> None:
    values = np.concatenate([[0.5], np.linspace(0, 1, 1001)])
    found = interval(values)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.025, 0.975))
    assert not interval(values, known=False).is_known
    assert not interval(np.array([0.5, np.nan])).is_known


def test_p_is_small_on_one_side_and_one_in_the_middle() -> None:
    assert p_value(np.ones(1000)) == pytest.approx(2 / 1000)
    assert p_value(np.concatenate([[0.0], np.linspace(-1, 1, 999)])) == 1.0


def test_holm_is_that_of_the_textbook_and_leaves_out_what_is_no_test() -> None:
    assert holm(np.array([0.01, np.nan, 0.04, 0.03, 0.005])) == pytest.approx(
        [0.03, np.nan, 0.06, 0.06, 0.02], nan_ok=True
    )
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1.0, 1.0])
