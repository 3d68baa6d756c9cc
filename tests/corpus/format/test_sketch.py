import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from replay_service.corpus.format.sketch import RELATIVE_ERROR, QuantileSketch
from tests.support import sketch_of

pure = settings(max_examples=60, deadline=None)
losses = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60)
SHARES = np.linspace(0.0, 1.0, 21)
NEARLY = RELATIVE_ERROR * (1 + 1e-6)
DISTRIBUTIONS = ("gamma", "lognormal", "uniform", "two peaks", "few different", "all equal", "float32")


def drawn(name: str, num: int = 5000) -> NDArray[Any]:
    rng = np.random.default_rng(11)
    distributions = {
        "gamma": rng.gamma(4.0, 1.0, num),
        "lognormal": rng.lognormal(0.0, 3.0, num).clip(1e-6, 1e6),
        "uniform": rng.random(num) + 1e-6,
        "two peaks": np.concatenate([rng.normal(1.0, 0.01, num // 2), rng.normal(9.0, 0.01, num // 2)]),
        "few different": rng.integers(1, 5, num).astype(np.float32),
        "all equal": np.full(num, 2.5, dtype=np.float32),
        "float32": rng.gamma(2.0, 2.0, num).astype(np.float32),
    }
    return distributions[name]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_quantiles_are_as_near_as_promised_whatever_the_distribution(name: str) -> None:
    values = drawn(name)
    exact = np.quantile(values.astype(np.float64), SHARES, method="lower")
    assert sketch_of(values).quantiles(SHARES) == pytest.approx(exact, rel=NEARLY)


@given(losses)
@pure
def test_quantiles_are_as_near_as_promised_for_any_numbers(values: list[float]) -> None:
    exact = np.quantile(values, SHARES, method="lower")
    assert sketch_of(np.array(values)).quantiles(SHARES) == pytest.approx(exact, rel=NEARLY)


@given(losses, st.randoms(use_true_random=False), st.integers(1, 5))
@pure
def test_what_is_counted_apart_in_any_order_adds_up_to_the_same(values: list[float], random: Any, parts: int) -> None:
    shuffled = random.sample(values, len(values))
    sketches = [sketch_of(np.array(shuffled[first::parts])) for first in range(parts)]
    random.shuffle(sketches)
    merged = QuantileSketch()
    for each in sketches:
        merged = merged.merged(each)
    assert merged.to_json() == sketch_of(np.array(values)).to_json()
    assert len(merged) == len(values)


def test_merging_leaves_both_as_they_were() -> None:
    left, right = sketch_of(np.array([1.0, 2.0])), sketch_of(np.array([3.0]))
    assert len(left.merged(right)) == 3
    left.merged(right).add([4.0])
    assert (len(left), len(right)) == (2, 1)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=80, unique=True), st.integers(1, 9))
@pure
def test_edges_cut_different_numbers_into_parts_of_equal_size(numbers: list[int], num_quantiles: int) -> None:
    # A hundredth apart, so that no two fall into one bin.
    values = 1.01 ** np.array(numbers)
    edges = sketch_of(values).edges(num_quantiles)
    assert edges.shape == (num_quantiles - 1,)
    assert (np.diff(edges) >= 0).all()
    sizes = np.bincount(quantiles_of(values, edges), minlength=num_quantiles)
    # A cut within a number's bin has it on either side; a cut between two numbers is exact.
    most_uneven = np.abs(sizes - len(values) / num_quantiles).max()
    assert most_uneven < 2 if len(values) % num_quantiles else most_uneven == 0


def quantiles_of(values: NDArray[Any], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    quantile: NDArray[np.int64] = (values[:, None] > edges).sum(axis=1)
    return quantile


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("num_quantiles", [2, 3, 8])
def test_edges_cut_many_numbers_into_parts_of_equal_mass_as_far_as_bins_and_ties_allow(
    name: str, num_quantiles: int
) -> None:
    values = drawn(name)
    sketch = sketch_of(values)
    sizes = np.bincount(quantiles_of(values, sketch.edges(num_quantiles)), minlength=num_quantiles)
    fullest_bin = max(sketch.to_json().values())
    assert np.abs(sizes - len(values) / num_quantiles).max() <= 2 * fullest_bin


@pytest.mark.parametrize("name", ["gamma", "uniform", "float32"])
def test_of_base_losses_strata_are_nearly_even(name: str) -> None:
    values = drawn(name)
    shares = np.bincount(quantiles_of(values, sketch_of(values).edges(8))) / len(values)
    assert np.abs(shares - 1 / 8).max() < 0.003


def test_equal_numbers_fall_into_one_part() -> None:
    values = np.full(100, 2.5)
    assert len(np.unique(quantiles_of(values, sketch_of(values).edges(4)))) == 1


def test_of_two_numbers_the_edge_stands_half_way() -> None:
    assert sketch_of(np.array([1.0, 3.0])).edges(2) == pytest.approx([2.0], rel=NEARLY)


def test_one_part_has_no_edges() -> None:
    assert sketch_of(np.array([1.0])).edges(1).shape == (0,)


def test_numbers_out_of_range_count_as_the_nearest_in_it() -> None:
    sketch = sketch_of(np.array([0.0, 1e-30, 1e30, np.inf]))
    assert len(sketch) == 4
    assert sketch.quantiles([0.0, 0.4, 0.7, 1.0]) == pytest.approx([1e-6, 1e-6, 1e6, 1e6], rel=NEARLY)


def test_a_sketch_of_nothing_has_no_quantiles() -> None:
    for sketch in (QuantileSketch(), sketch_of(np.empty(0))):
        assert len(sketch) == 0
        with pytest.raises(ValueError, match="nothing was added"):
            sketch.quantiles([0.5])


@given(losses)
@pure
def test_a_sketch_survives_being_written_down(values: list[float]) -> None:
    sketch = sketch_of(np.array(values))
    again = QuantileSketch.from_json(json.loads(json.dumps(sketch.to_json())))
    assert again.to_json() == sketch.to_json()
    assert again.quantiles(SHARES).tolist() == sketch.quantiles(SHARES).tolist()


@given(losses, st.integers(1, 30))
@pure
def test_a_histogram_over_everything_counts_everything_once(values: list[float], num_bars: int) -> None:
    counts = sketch_of(np.array(values)).histogram(np.linspace(0.0, 2e6, num_bars + 1))
    assert counts.dtype == np.int64
    assert counts.sum() == len(values)


def test_a_histogram_counts_between_its_edges_alone() -> None:
    sketch = sketch_of(np.array([0.5, 1.5, 1.6, 2.5, 9.0]))
    assert sketch.histogram([1.0, 2.0, 3.0]).tolist() == [2, 1]
    assert QuantileSketch().histogram([0.0, 1.0]).tolist() == [0]
