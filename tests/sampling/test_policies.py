import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.sampling.policies import MixCd, PermutedMixCd, Stratified, Uniform, systematic

pure = settings(max_examples=50, deadline=None)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and damage rates; some strata are empty, at least one is not."""
    num = draw(st.integers(1, 20))
    sizes = draw(st.lists(st.integers(0, 10**12), min_size=num, max_size=num).filter(any))
    rates = draw(st.lists(st.floats(1e-6, 10.0), min_size=num, max_size=num))
    return np.array(sizes), np.array(rates)


@st.composite
def distributions(draw: st.DrawFn) -> np.ndarray:
    weights = draw(st.lists(st.sampled_from([0, 0, 1, 2, 5, 100, 10**6]), min_size=1, max_size=30).filter(any))
    return np.array(weights) / sum(weights)


@given(worlds(), st.floats(0.0, 4.0), st.floats(0.0, 1.0))
@pure
def test_probabilities_sum_to_one_and_none_is_below_the_floor(
    world: tuple[np.ndarray, np.ndarray], sharpness: float, floor: float
) -> None:
    sizes, rates = world
    probabilities = MixCd(sharpness, floor).probabilities(sizes, rates)
    assert probabilities.sum() == pytest.approx(1.0)
    assert (probabilities >= floor * sizes / sizes.sum() - 1e-12).all()
    assert (probabilities[sizes == 0] == 0.0).all()


@given(worlds())
@pure
def test_uniform_gives_every_sample_the_same_probability(world: tuple[np.ndarray, np.ndarray]) -> None:
    sizes, rates = world
    assert Uniform().probabilities(sizes, rates) == pytest.approx(sizes / sizes.sum())


@given(worlds())
@pure
def test_without_sharpness_or_with_all_floor_mix_cd_is_uniform(world: tuple[np.ndarray, np.ndarray]) -> None:
    sizes, rates = world
    for policy in (MixCd(0.0, 0.0), MixCd(3.0, 1.0)):
        assert policy.probabilities(sizes, rates) == pytest.approx(Uniform().probabilities(sizes, rates))


@given(worlds())
@pure
def test_stratified_draws_all_strata_alike_but_those_that_are_empty(world: tuple[np.ndarray, np.ndarray]) -> None:
    sizes, rates = world
    probabilities = Stratified().probabilities(sizes, rates)
    assert probabilities == pytest.approx((sizes > 0) / (sizes > 0).sum())


@given(worlds(), st.integers(0, 2**63 - 1))
@pure
def test_permuted_rates_are_the_same_rates_of_other_strata(world: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    rates = world[1]
    sizes, mix_cd = np.ones(len(rates), dtype=np.int64), MixCd(1.0, 0.1)
    permuted = PermutedMixCd(mix_cd, seed).probabilities(sizes, rates)
    assert np.sort(permuted) == pytest.approx(np.sort(mix_cd.probabilities(sizes, rates)))
    assert (permuted == PermutedMixCd(mix_cd, seed).probabilities(sizes, rates)).all()


def test_another_seed_permutes_the_rates_in_another_way() -> None:
    sizes, rates = np.ones(20, dtype=np.int64), np.arange(1.0, 21.0)
    orders = {tuple(PermutedMixCd(MixCd(1.0, 0.0), seed).probabilities(sizes, rates).argsort()) for seed in range(10)}
    assert len(orders) == 10


def test_mix_cd_draws_strata_by_size_times_damage_rate() -> None:
    sizes, rates = np.array([100, 100, 200]), np.array([0.1, 0.4, 0.2])
    assert MixCd(1.0, 0.0).probabilities(sizes, rates) == pytest.approx(np.array([10, 40, 40]) / 90)
    assert MixCd(2.0, 0.0).probabilities(sizes, rates) == pytest.approx(np.array([1, 16, 8]) / 25)
    floored = MixCd(1.0, 0.1).probabilities(sizes, rates)
    assert floored == pytest.approx(0.9 * np.array([10, 40, 40]) / 90 + 0.1 * np.array([1, 1, 2]) / 4)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_only_the_ratios_of_damage_rates_to_one_another_count(scale: float) -> None:
    sizes, rates = np.array([100, 100, 200]), np.array([0.1, 0.4, 0.2])
    for policy in (MixCd(1.0, 0.1), MixCd(4.0, 0.0)):
        assert policy.probabilities(sizes, scale * rates) == pytest.approx(policy.probabilities(sizes, rates))


@given(distributions(), st.integers(1, 500), st.floats(0.0, 1.0, exclude_max=True))
@pure
def test_a_stratum_is_drawn_its_expected_number_of_times_rounded_up_or_down(
    probabilities: np.ndarray, num_draws: int, offset: float
) -> None:
    drawn = systematic(probabilities, np.array([num_draws]), np.array([offset]))
    assert len(drawn) == num_draws
    assert (np.diff(drawn) >= 0).all()
    expected = num_draws * probabilities
    drawn_times = np.bincount(drawn, minlength=len(probabilities))
    assert (drawn_times >= np.floor(expected - 1e-9)).all()
    assert (drawn_times <= np.ceil(expected + 1e-9)).all()


@pytest.mark.parametrize("offset", [0.0, 0.5, math.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("weights", [[0, 1], [1, 0], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0]])
def test_a_stratum_of_probability_zero_is_never_drawn(weights: list[int], offset: float) -> None:
    probabilities = np.array(weights) / sum(weights)
    for num_draws in (1, 2, 3, 1000, 10**6):
        assert (probabilities[systematic(probabilities, np.array([num_draws]), np.array([offset]))] > 0).all()


def test_over_the_offsets_a_stratum_is_drawn_in_proportion() -> None:
    probabilities = np.array([0.13, 0.0, 0.37, 0.5])
    offsets = (np.arange(1000) + 0.5) / 1000
    drawn = systematic(probabilities, np.full(len(offsets), 3), np.asarray(offsets))
    assert np.bincount(drawn, minlength=4) / len(drawn) == pytest.approx(probabilities, abs=1e-3)
