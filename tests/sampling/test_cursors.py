import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.sampling.cursors import Cursors
from replay_service.sampling.held_back import HeldBack

pure = settings(max_examples=80, deadline=None)
seeds = st.integers(0, 2**63 - 1)


def arrays_of(cursors: Cursors) -> list[tuple[object, bytes]]:
    arrays = (cursors.num_draws, cursors.epoch, cursors.sizes, cursors.block_size, cursors.block_drawn, cursors.born)
    return [(array.shape, array.tobytes()) for array in arrays]


def drawn_from(cursors: Cursors, seed: int, stratum: int, num: int) -> list[tuple[int, int]]:
    """(row, times drawn) of the next draws of one stratum."""
    draws = cursors.draw(seed, np.full(num, stratum, dtype=np.int64))
    return list(zip(draws.row.tolist(), draws.times_drawn.tolist(), strict=True))


def cursors_over(*sizes: int, held_back: float = 0.0) -> Cursors:
    return Cursors.over(np.array(sizes, dtype=np.int64), HeldBack(held_back))


shares = st.sampled_from([0.0, 0.25, 0.5])


@given(st.data())
@pure
def test_within_an_epoch_every_row_that_is_there_comes_once_however_the_stratum_grows(data: st.DataObject) -> None:
    seed = data.draw(seeds)
    sizes = data.draw(st.lists(st.integers(1, 9) | st.integers(60, 70), min_size=1, max_size=3), label="sizes")
    cursors = cursors_over(*sizes, held_back=data.draw(shares, label="held back"))

    def rows(k: int, first: int, end: int) -> set[int]:
        """Those that the stratum's epoch draws."""
        return {row for row in range(first, end) if cursors.held_back.freed_in(np.array([row])) <= cursors.epoch[k]}

    left = [rows(k, 0, size) for k, size in enumerate(sizes)]
    seen: dict[tuple[int, int], int] = {}
    for _ in range(data.draw(st.integers(1, 12), label="turns")):
        if data.draw(st.booleans(), label="grow"):
            grown = [size + data.draw(st.integers(0, 4), label="more") for size in sizes]
            grown += data.draw(st.lists(st.integers(1, 5), max_size=1), label="new strata")
            cursors.grow(np.array(grown))
            left += [set() for _ in grown[len(sizes) :]]
            for k, (old, new) in enumerate(zip([*sizes, 0], grown, strict=False)):
                left[k] |= rows(k, old, new)
            sizes = grown
        k = data.draw(st.integers(0, len(sizes) - 1), label="stratum")
        strata = [k] * data.draw(st.integers(0, len(left[k])), label="num")
        draws = cursors.draw(seed, np.array(strata, dtype=np.int64))
        for k, row, times in zip(strata, draws.row.tolist(), draws.times_drawn.tolist(), strict=True):
            assert row in left[k]
            left[k].remove(row)
            seen[k, row] = seen.get((k, row), 0) + 1
            assert times == seen[k, row]
        if not left[k]:
            left[k] = rows(k, 0, sizes[k])
        assert cursors.sizes.tolist() == sizes
        assert cursors.num_draws.sum() == sum(seen.values())


@given(seeds, st.lists(st.integers(1, 7), min_size=1, max_size=4), st.lists(st.integers(0, 6), max_size=5), shares)
@pure
def test_advancing_goes_as_far_as_drawing(seed: int, sizes: list[int], more: list[int], share: float) -> None:
    drawing, advancing = cursors_over(*sizes, held_back=share), cursors_over(*sizes, held_back=share)
    for turn, extra in enumerate(more):
        strata = np.sort(np.arange(9 + 9 * turn) % len(sizes))
        drawing.draw(seed, strata)
        advancing.advance(seed, strata)
        for cursors in (drawing, advancing):
            cursors.grow(cursors.sizes + extra)
    assert arrays_of(drawing) == arrays_of(advancing)


@given(seeds, st.integers(1, 30), st.integers(0, 90), shares)
@pure
def test_at_once_or_one_by_one_the_same_rows_are_drawn(seed: int, size: int, num: int, share: float) -> None:
    at_once, one_by_one = cursors_over(size, held_back=share), cursors_over(size, held_back=share)
    for cursors in (at_once, one_by_one):
        drawn_from(cursors, seed, 0, size // 2)
        cursors.grow(np.array([size + 5]))
    assert drawn_from(at_once, seed, 0, num) == [drawn_from(one_by_one, seed, 0, 1)[0] for _ in range(num)]
    assert arrays_of(at_once) == arrays_of(one_by_one)


def test_strata_that_grow_before_the_first_draw_are_the_larger_strata() -> None:
    cursors = cursors_over(3, 0, 5)
    cursors.grow(np.array([4, 2, 5, 7]))
    assert arrays_of(cursors) == arrays_of(cursors_over(4, 2, 5, 7))


def test_when_the_epoch_is_over_all_rows_are_one_block_again() -> None:
    cursors = cursors_over(4)
    drawn_from(cursors, 1, 0, 2)
    cursors.grow(np.array([10]))
    assert cursors.block_size.tolist() == [[4, 6]]
    drawn_from(cursors, 1, 0, 8)
    assert (cursors.block_size.tolist(), cursors.block_drawn.tolist(), cursors.epoch.tolist()) == ([[10]], [[0]], [1])


def test_rows_that_came_in_a_later_epoch_are_visited_for_the_first_time_in_it() -> None:
    cursors = cursors_over(3)
    drawn_from(cursors, 5, 0, 7)
    cursors.grow(np.array([6]))
    rest_of_third_epoch = dict(drawn_from(cursors, 5, 0, 5))
    assert {row: times for row, times in rest_of_third_epoch.items() if row >= 3} == {3: 1, 4: 1, 5: 1}
    assert all(times == 3 for row, times in rest_of_third_epoch.items() if row < 3)
    assert dict(drawn_from(cursors, 5, 0, 6)) == {0: 4, 1: 4, 2: 4, 3: 2, 4: 2, 5: 2}


def test_after_growing_every_row_that_is_left_is_equally_likely() -> None:
    counts = np.zeros(8)
    num_seeds = 4000
    for seed in range(num_seeds):
        cursors = cursors_over(4)
        first = drawn_from(cursors, seed, 0, 1)[0][0]
        cursors.grow(np.array([8]))
        (second, _) = drawn_from(cursors, seed, 0, 1)[0]
        assert second != first
        counts[second] += 1
    # An old row is left with probability 3/4, and then one of seven; a new one is one of seven.
    expected = num_seeds * np.array([3 / 28] * 4 + [1 / 7] * 4)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 24.3  # the 0.1 % point of 7 degrees of freedom


@pytest.mark.parametrize("extra", [0, 5])
def test_empty_strata_stay_as_they_are(extra: int) -> None:
    cursors = cursors_over(0, 3)
    drawn_from(cursors, 2, 1, 4)
    cursors.grow(np.array([0, 3 + extra]))
    assert (cursors.epoch.tolist(), cursors.sizes.tolist()) == ([0, 1], [0, 3 + extra])


@given(seeds, st.integers(1, 200), st.integers(0, 100), shares)
@pure
def test_the_chance_of_a_first_visit_is_the_share_that_is_left_of_rows_never_drawn(
    seed: int, size: int, more: int, share: float
) -> None:
    cursors, drawn = cursors_over(size, held_back=share), set[int]()
    for turn in range(size + 20):
        if turn == size + 2:
            cursors.grow(np.array([size + more]))
        (row,), (times,), (chance,) = cursors.draw(seed, np.zeros(1, dtype=np.int64))
        assert (times == 1) == (row not in drawn)
        assert 0.0 < chance <= 1.0
        drawn.add(int(row))
        if cursors.epoch[0] == 0:
            assert chance == 1.0


def test_over_an_epoch_the_chances_of_first_visits_add_up_to_how_many_there_are() -> None:
    cursors, first, chances = cursors_over(640, held_back=0.25), dict[int, int](), dict[int, float]()
    while (epoch := int(cursors.epoch[0])) < 30:
        (_,), (times,), (chance,) = cursors.draw(3, np.zeros(1, dtype=np.int64))
        first[epoch] = first.get(epoch, 0) + int(times == 1)
        chances[epoch] = chances.get(epoch, 0.0) + float(chance if times == 1 else 1.0 - chance)
    assert first[0] == 480
    assert sum(first.values()) == 640
    assert [first[epoch] for epoch in range(1, 6)] == [20, 20, 20, 10, 10]
    for epoch, num in first.items():
        assert chances[epoch] == pytest.approx(num)


def test_a_row_is_held_back_in_its_stratum_whatever_comes_after_it() -> None:
    held_back = HeldBack(0.25)
    num, epoch = np.arange(1, 300), np.zeros(299, dtype=np.int64)
    for each in range(held_back.last_epoch + 1):
        epoch[:] = each
        drawn = [row for row in range(299) if held_back.freed_in(np.array([row])) <= each]
        assert held_back.num_drawn(num, epoch).tolist() == [sum(row < n for row in drawn) for n in num.tolist()]
        assert held_back.row(np.arange(len(drawn)), epoch[: len(drawn)]).tolist() == drawn
    assert len(drawn) == 299
