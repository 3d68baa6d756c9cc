import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from replay_service.sampling.damage import DAMAGE_OF, SIGNALS, damage_rates
from replay_service.sampling.events import REPORTED_ROW

WEIGHT = 8.0

counts = hnp.arrays(np.float64, (3, 4), elements=st.integers(0, 10**6).map(float))
shares = hnp.arrays(np.float64, (3, 4), elements=st.just(0.0) | st.floats(1e-9, 1.0))


def reported(loss: list[float], base_loss: list[float], flips: list[int] | None = None, tokens: int = 10) -> np.ndarray:
    rows = np.zeros(len(loss), dtype=REPORTED_ROW)
    rows["loss_nats"], rows["base_loss_nats"], rows["num_tokens"] = loss, base_loss, tokens
    rows["num_flips"] = flips or 0
    return rows


def multiplicative_rates(rng: np.random.Generator, num_groups: int, num_quantiles: int) -> np.ndarray:
    return np.outer(rng.uniform(0.1, 0.9, num_groups), rng.uniform(0.1, 1.0, num_quantiles))


def test_token_flip_is_the_share_of_tokens_that_flipped() -> None:
    rows = reported([1, 1, 1], [1, 1, 1], flips=[0, 3, 10])
    assert DAMAGE_OF["token_flip"](rows, 0, 0).tolist() == [0.0, 0.3, 1.0]


def test_net_flip_leaves_out_what_was_gained() -> None:
    rows = reported([1, 1, 1, 1], [1, 1, 1, 1], flips=[3, 3, 0, 3])
    rows["num_gains"] = [0, 2, 5, -1]
    assert DAMAGE_OF["net_flip"](rows, 0, 0) == pytest.approx([0.3, 0.1, 0.0, 0.3])


def test_excess_loss_counts_what_got_worse_and_not_what_got_better() -> None:
    rows = reported([2.5, 1.0, 0.5], [1.0, 1.0, 1.0])
    assert DAMAGE_OF["excess_loss"](rows, 0, 0).tolist() == [1.5, 0.0, 0.0]


def test_threshold_counts_samples_that_were_learned_and_got_worse() -> None:
    rows = reported([2.0, 2.0, 1.05, 9.0], [1.0, 2.0, 1.0, 5.0])
    assert DAMAGE_OF["threshold"](rows, 3.0, 0.1).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert DAMAGE_OF["threshold"](rows, 5.0, 0.01).tolist() == [1.0, 0.0, 1.0, 1.0]


def test_every_signal_that_a_run_may_ask_for_is_there() -> None:
    assert set(DAMAGE_OF) == set(SIGNALS)


@given(counts)
@settings(max_examples=50, deadline=None)
def test_without_damage_all_strata_are_equal(count: np.ndarray) -> None:
    assert len(np.unique(damage_rates(np.zeros_like(count), count, WEIGHT))) == 1


@given(counts, shares, st.floats(0.1, 100.0))
@settings(max_examples=50, deadline=None)
def test_rates_are_positive_and_finite_whatever_was_reported(
    count: np.ndarray, share: np.ndarray, weight: float
) -> None:
    rates = damage_rates(count * share, count, weight)
    assert np.isfinite(rates).all()
    assert (rates > 0.0).all()


@pytest.mark.parametrize("faded", [1e-90, 1e-170, 1e-300, 5e-324])
def test_damage_that_has_all_but_faded_does_not_break_the_rates(faded: float) -> None:
    damage = np.array([[faded, 0.0], [0.0, 0.0]])
    rates = damage_rates(damage, np.full((2, 2), 2.0), WEIGHT)
    assert np.isfinite(rates).all()
    assert 0.05 < rates.min() / rates.max() <= 1.0


def test_with_much_data_the_rates_are_what_was_seen() -> None:
    truth = np.random.default_rng(0).uniform(0.01, 0.9, (4, 5))
    count = np.full(truth.shape, 1e7)
    assert damage_rates(truth * count, count, WEIGHT) == pytest.approx(truth, rel=1e-3)


def test_a_stratum_without_a_report_is_judged_by_its_domain_and_its_quantile() -> None:
    truth = np.outer([0.8, 0.1], [0.5, 1.0])
    count = np.full(truth.shape, 1e7)
    count[0, 1] = 0.0
    rates = damage_rates(truth * count, count, WEIGHT)
    assert rates[0, 1] > 2 * rates[1].max()


def test_with_little_data_pooling_is_nearer_to_the_truth_than_rates_of_their_own() -> None:
    rng = np.random.default_rng(1)
    pooled_errors, own_errors, shrunk_errors = [], [], []
    for _ in range(50):
        truth = multiplicative_rates(rng, 8, 8)
        count = rng.integers(1, 6, truth.shape)
        damage = rng.binomial(count, truth).astype(np.float64)
        overall = damage.sum() / count.sum()
        pooled_errors.append(((damage_rates(damage, count.astype(float), WEIGHT) - truth) ** 2).mean())
        own_errors.append(((damage / count - truth) ** 2).mean())
        shrunk_errors.append((((WEIGHT * overall + damage) / (WEIGHT + count) - truth) ** 2).mean())
    assert np.mean(pooled_errors) < 0.5 * np.mean(own_errors)
    assert np.mean(pooled_errors) < 0.8 * np.mean(shrunk_errors)


def test_a_heavier_prior_keeps_the_rates_closer_together() -> None:
    damage, count = np.array([[9.0, 1.0], [5.0, 0.0]]), np.full((2, 2), 10.0)
    assert np.ptp(damage_rates(damage, count, 100.0)) < np.ptp(damage_rates(damage, count, 1.0))
