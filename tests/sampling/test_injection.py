from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.sampling.injection import (
    decimal_of,
    exact_ratio,
    num_rehearsed,
    rank_positions,
    rehearsed_before,
    target_rows,
)

ratios = st.fractions(0, 1, max_denominator=1000)
batch_sizes = st.integers(1, 5000)
steps = st.integers(0, 10**9)
pure = settings(max_examples=50, deadline=None)


@given(ratios, batch_sizes, steps, st.integers(1, 10**6))
@pure
def test_over_any_window_the_rehearsed_rows_are_within_one_of_the_ratio(
    ratio: Fraction, batch: int, first: int, window: int
) -> None:
    rehearsed = rehearsed_before(first + window, ratio, batch) - rehearsed_before(first, ratio, batch)
    assert abs(rehearsed - ratio * batch * window) < 1


@given(ratios, batch_sizes, steps, st.integers(1, 50))
@pure
def test_the_steps_of_a_window_add_up_to_it(ratio: Fraction, batch: int, first: int, window: int) -> None:
    counts = [num_rehearsed(step, ratio, batch) for step in range(first, first + window)]
    assert sum(counts) == rehearsed_before(first + window, ratio, batch) - rehearsed_before(first, ratio, batch)
    assert all(0 <= count <= batch for count in counts)


@pytest.mark.parametrize(("ratio", "count"), [("0", 0), ("1", 64), ("0.25", 16)])
def test_a_whole_share_is_the_same_in_every_step(ratio: str, count: int) -> None:
    assert {num_rehearsed(step, exact_ratio(ratio), 64) for step in range(100)} == {count}


def test_a_share_below_one_row_comes_every_so_many_steps() -> None:
    counts = [num_rehearsed(step, exact_ratio("0.01"), 10) for step in range(30)]
    assert [step for step, count in enumerate(counts) if count] == [9, 19, 29]


@given(st.integers(0, 200), steps, st.integers(1, 64))
@pure
def test_the_ranks_share_out_the_plan_without_gap_or_overlap(num_planned: int, step: int, world_size: int) -> None:
    shares = [rank_positions(num_planned, step, rank, world_size) for rank in range(world_size)]
    assert sorted(position for share in shares for position in share) == list(range(num_planned))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_plan_of_one_sample_falls_to_every_rank_in_turn() -> None:
    assert [[rank for rank in range(4) if rank_positions(1, step, rank, 4)] for step in range(4)] == [
        [0],
        [1],
        [2],
        [3],
    ]


@pytest.mark.parametrize("rank", [-1, 4, 5])
def test_a_rank_outside_the_world_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match="rank must lie in"):
        rank_positions(10, 0, rank, 4)
    with pytest.raises(ValueError, match="rank must lie in"):
        target_rows(0, 1, 0, rank, 4, 8)


def test_a_world_of_more_ranks_than_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="world_size 9 is more than global_batch_size 8"):
        target_rows(0, 1, 0, 0, 9, 8)


@given(ratios, st.integers(1, 40), st.integers(0, 10**6), st.data())
@pure
def test_target_rows_follow_each_other_over_ranks_steps_and_changes_of_world(
    ratio: Fraction, batch: int, first_step: int, data: st.DataObject
) -> None:
    world_sizes = data.draw(st.lists(st.integers(1, batch), max_size=6))
    next_row = first_step * batch - rehearsed_before(first_step, ratio, batch)
    for step, world_size in enumerate(world_sizes, first_step):
        planned, before = num_rehearsed(step, ratio, batch), rehearsed_before(step, ratio, batch)
        for rank in range(world_size):
            rows = target_rows(step, planned, before, rank, world_size, batch)
            assert rows.start == next_row
            next_row = rows.stop


@given(ratios, st.integers(1, 16), st.integers(0, 200), steps)
@pure
def test_every_rank_trains_on_its_even_share_of_the_batch(
    ratio: Fraction, world_size: int, more: int, step: int
) -> None:
    batch = world_size + more
    num_planned = num_rehearsed(step, ratio, batch)
    local = []
    for rank in range(world_size):
        rehearsed = rank_positions(num_planned, step, rank, world_size)
        local.append(len(rehearsed) + len(target_rows(step, num_planned, 0, rank, world_size, batch)))
    assert sum(local) == batch
    assert max(local) - min(local) == (1 if batch % world_size else 0)


@pytest.mark.parametrize(
    ("written", "exact"),
    [
        ("0.1", Fraction(1, 10)),
        (0.1, Fraction(1, 10)),
        (1e-05, Fraction(1, 100_000)),
        ("5e-2", Fraction(1, 20)),
        (Fraction(1, 3), Fraction(1, 3)),
        (0, Fraction(0)),
        (1.0, Fraction(1)),
        (".5", Fraction(1, 2)),
        ("1.", Fraction(1)),
        ("1E-2", Fraction(1, 100)),
    ],
)
def test_a_ratio_is_the_decimal_that_was_written(written: float | str | Fraction, exact: Fraction) -> None:
    assert exact_ratio(written) == exact


@pytest.mark.parametrize(
    "ratio",
    [
        "1/3",
        "0.1_0",
        "0.5\n",
        "0.5\r\n",
        " 0.5",
        "+0.5",
        "\u0660.\u0665",
        "\uff10.5",
        "0x1",
        ".",
        "e1",
        "0.5e",
        "0.5e+",
    ],
)
def test_what_is_no_plain_decimal_is_refused(ratio: str) -> None:
    with pytest.raises(ValueError, match="injection_ratio must be a number"):
        exact_ratio(ratio)


@pytest.mark.parametrize(
    ("written", "decimal"),
    [
        ("0.05", "0.05"),
        ("1e-3", "1e-3"),
        ("0.5\n", "0.5"),
        ("0.1_0", "0.1"),
        ("1/4", "0.25"),
        ("\u0660.\u0665", "0.5"),
        ("1", "1"),
    ],
)
def test_a_ratio_of_an_earlier_release_is_read_as_a_decimal(written: str, decimal: str) -> None:
    assert decimal_of(written) == decimal
    assert exact_ratio(decimal) == Fraction(written)


def test_a_ratio_without_a_finite_decimal_goes_on_to_rehearse_as_many_rows() -> None:
    third = exact_ratio(decimal_of("1/3"))
    assert 0 < third - Fraction(1, 3) < Fraction(1, 10**30)
    assert all(rehearsed_before(step, third, 7) == rehearsed_before(step, Fraction(1, 3), 7) for step in range(1000))


@pytest.mark.parametrize("ratio", ["", "half", "nan", "inf", "-0.1", "1.0001", -0.5, 2, "1/0", "0,1", Fraction(3, 2)])
def test_what_is_no_share_is_refused(ratio: float | str | Fraction) -> None:
    with pytest.raises(ValueError, match="injection_ratio must"):
        exact_ratio(ratio)


@pytest.mark.parametrize("ratio", ["1e-999999999999", "1e999999999999", "0." + "0" * 5000 + "1"])
def test_a_number_too_long_to_reckon_with_is_refused_at_once(ratio: str) -> None:
    with pytest.raises(ValueError, match="injection_ratio must"):
        exact_ratio(ratio)
