import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.sampling.permutation import key_of, keys, permute, uniforms


def permuted(key: int, size: int, positions: np.ndarray) -> np.ndarray:
    num = len(positions)
    return permute(keys(np.full(num, key)), np.full(num, size, dtype=np.int64), positions.astype(np.int64))


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def generous_bound(num_cells: int) -> float:
    """Six standard deviations above the mean of a chi-square."""
    freedom = num_cells - 1
    return freedom + 6.0 * math.sqrt(2.0 * freedom)


@pytest.mark.parametrize("key", [0, 1, 2**62])
def test_is_a_bijection_for_every_small_size(key: int) -> None:
    for size in range(1, 301):
        assert np.array_equal(np.sort(permuted(key, size, np.arange(size))), np.arange(size)), size


@pytest.mark.parametrize("size", [1023, 1024, 1025, 65_536, 100_003])
def test_is_a_bijection_for_larger_sizes(size: int) -> None:
    assert np.array_equal(np.sort(permuted(5, size, np.arange(size))), np.arange(size))


@pytest.mark.parametrize("size", [10**9, 10**12, 2**40, 2**40 + 1, 2**62])
def test_sends_distinct_positions_of_huge_sizes_to_distinct_places_inside(size: int) -> None:
    positions = np.concatenate([np.arange(100_000), size - 1 - np.arange(100_000)])
    places = permuted(3, size, positions)
    assert len(np.unique(places)) == len(positions)
    assert places.min() >= 0
    assert places.max() < size


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_rows_of_different_keys_and_sizes_do_not_touch_each_other(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 10**12), min_size=1, max_size=20))
    positions = [data.draw(st.integers(0, size - 1)) for size in sizes]
    key = keys(np.arange(len(sizes)))
    together = permute(key, np.array(sizes), np.array(positions))
    for i, (size, position) in enumerate(zip(sizes, positions, strict=True)):
        assert together[i] == permute(key[i : i + 1], np.array([size]), np.array([position]))[0]


@pytest.mark.parametrize("size", [2, 3, 5, 7, 16, 17, 100, 257])
@pytest.mark.parametrize("position", [0, 1])
def test_over_many_keys_a_position_goes_everywhere_equally_often(size: int, position: int) -> None:
    num_keys = 200 * size
    places = permute(keys(np.arange(num_keys)), np.full(num_keys, size), np.full(num_keys, position))
    assert chi_square(np.bincount(places, minlength=size)) < generous_bound(size)


@pytest.mark.parametrize("size", [3, 4, 5, 6])
def test_over_many_keys_every_order_comes_equally_often(size: int) -> None:
    num_keys = 200 * math.factorial(size)
    key = np.repeat(keys(np.arange(num_keys)), size)
    places = permute(key, np.full(len(key), size), np.tile(np.arange(size), num_keys)).reshape(num_keys, size)
    _, counts = np.unique(places, axis=0, return_counts=True)
    assert len(counts) == math.factorial(size)
    assert chi_square(counts) < generous_bound(len(counts))


@pytest.mark.parametrize("size", [9, 17, 40])
@pytest.mark.parametrize("gap", [1, 2, 8])
def test_over_many_keys_two_positions_go_to_every_pair_of_places_equally_often(size: int, gap: int) -> None:
    num_keys = 100 * size * (size - 1)
    key, sizes = keys(np.arange(num_keys)), np.full(num_keys, size)
    left, right = (permute(key, sizes, np.full(num_keys, position)) for position in (0, gap))
    counts = np.bincount(left * size + right, minlength=size * size).reshape(size, size)
    assert counts.trace() == 0
    assert chi_square(counts[~np.eye(size, dtype=bool)]) < generous_bound(size * (size - 1))


def test_neighbours_of_a_large_size_go_to_unrelated_places() -> None:
    size = 10**12
    places = permuted(11, size, np.arange(100_000))
    assert chi_square(np.bincount(places // (size // 50), minlength=50)) < generous_bound(50)
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.02


def test_another_key_gives_another_order() -> None:
    assert not np.array_equal(permuted(1, 1000, np.arange(1000)), permuted(2, 1000, np.arange(1000)))


def test_numbers_of_keys_are_uniform_in_the_unit_interval() -> None:
    draws = uniforms(keys(9, 1, np.arange(5000)))
    assert draws.min() >= 0.0 and draws.max() < 1.0
    assert chi_square(np.histogram(draws, bins=20, range=(0, 1))[0]) < generous_bound(20)


def test_a_key_heeds_the_order_of_its_words() -> None:
    assert key_of(1, 2) != key_of(2, 1)
    assert key_of(1, 2) == int(keys(1, 2)[0])


def test_keys_of_arrays_are_the_keys_of_their_elements() -> None:
    together = keys(5, np.arange(10), 3)
    assert together.dtype == np.uint64
    assert together.tolist() == [int(keys(5, i, 3)[0]) for i in range(10)]
    assert len(set(together.tolist())) == 10


def test_a_key_changes_in_about_half_of_its_bits_with_any_bit_of_a_word() -> None:
    words = np.arange(500)
    for bit in range(62):
        changed = keys(words) ^ keys(words ^ (1 << bit))
        assert 28 < np.mean([int(word).bit_count() for word in changed]) < 36


def test_the_draws_of_a_released_version_stay_the_same() -> None:
    """A run that is resumed under a later release must be served the plans that it was promised."""
    assert keys(7, 1, 2).tolist() == [1650069959653123811]
    assert permuted(7, 10, np.arange(10)).tolist() == [7, 8, 3, 2, 9, 1, 6, 5, 0, 4]
    assert permuted(7, 100, np.arange(10)).tolist() == [31, 44, 2, 67, 71, 22, 74, 52, 92, 87]
    assert permuted(7, 10**12, np.arange(3)).tolist() == [534983741631, 426845444314, 569840363793]


@pytest.mark.slow
def test_it_is_a_bijection_for_every_size_up_to_ten_thousand() -> None:
    for size in range(1, 10_001):
        assert (np.bincount(permuted(size, size, np.arange(size)), minlength=size) == 1).all(), size
