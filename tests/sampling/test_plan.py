import copy
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.sampling.events import Adopted
from replay_service.sampling.fold import fold, fold_all
from replay_service.sampling.injection import num_rehearsed
from replay_service.sampling.run_config import Feedback
from replay_service.sampling.run_state import RunState
from replay_service.sampling.schedule import Schedule
from tests.sampling.worlds import image, initial_state, partition_of_sizes, planned, plans_of, report_of, same_plan

sizes = st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(any)
ratios = st.sampled_from(["0", "0.05", "0.3", "0.5", "1"])
pure = settings(max_examples=50, deadline=None)


def reported_in_full(state: RunState, first_step: int) -> None:
    """Report every pending sample of the steps from `first_step` on, a third of its tokens flipped."""
    for step in [step for step in state.pending if step >= first_step]:
        fold(state, report_of(step, state.pending[step].rows["sample_id"], num_tokens=9, num_flips=3))


@given(sizes, ratios, st.integers(0, 2**63 - 1), st.integers(0, 30))
@pure
def test_planning_leaves_the_state_as_it_is(sizes: list[int], ratio: str, seed: int, last_step: int) -> None:
    state = initial_state(sizes, injection_ratio=ratio, seed=seed)
    before = image(copy.deepcopy(state))
    plans_of(state, last_step)
    assert image(state) == before


@given(sizes, ratios, st.integers(0, 2**63 - 1), st.lists(st.integers(1, 6), min_size=1, max_size=8))
@pure
def test_planning_at_once_or_bit_by_bit_gives_the_same_plans(
    sizes: list[int], ratio: str, seed: int, strides: list[int]
) -> None:
    at_once = initial_state(sizes, injection_ratio=ratio, seed=seed)
    bit_by_bit = copy.deepcopy(at_once)
    plans = []
    for stride in strides:
        plans += planned(bit_by_bit, bit_by_bit.next_step + stride - 1)
    whole = planned(at_once, sum(strides) - 1)
    assert all(same_plan(a, b) for a, b in zip(whole, plans, strict=True))
    assert image(at_once) == image(bit_by_bit)


@given(sizes, st.sampled_from(["latest", "fenced"]), st.sampled_from([Schedule(), Schedule("linear", 9)]), st.data())
@pure
def test_a_window_is_planned_and_folded_as_its_steps_would_be_one_by_one(
    sizes: list[int], mode: Literal["latest", "fenced"], schedule: Schedule, data: st.DataObject
) -> None:
    config: dict[str, object] = {"injection_ratio": "0.7", "feedback": Feedback(mode, 4), "schedule": schedule}
    at_once, one_by_one = (initial_state(sizes, **config) for _ in range(2))
    for _ in range(4):
        last_step = at_once.next_step + data.draw(st.integers(0, 3), label="steps after the first")
        plans = plans_of(at_once, last_step)
        fold_all(at_once, plans)
        for plan in plans:
            (single,) = planned(one_by_one, plan.step)
            assert same_plan(plan, single)
        assert image(at_once) == image(one_by_one)
        for state in (at_once, one_by_one):
            reported_in_full(state, last_step)
        if data.draw(st.booleans(), label="the corpus grows"):
            grown = tuple(int(size) + data.draw(st.integers(0, 3)) for size in at_once.cursors.sizes)
            for state in (at_once, one_by_one):
                fold(state, Adopted(last_step, state.generation + 1, grown))


def test_a_plan_does_not_depend_on_whether_a_stratum_has_ended_its_blocks_within_its_window() -> None:
    """The probability of a later visit came out one rounding apart."""
    config: dict[str, object] = {"injection_ratio": "0.7", "feedback": Feedback("fenced", 4)}
    at_once, one_by_one = (initial_state([4, 3, 4, 6], **config) for _ in range(2))
    for last_step, grown in ((0, (7, 4, 6, 9)), (3, (8, 5, 6, 11)), (6, (8, 5, 6, 11))):
        plans = planned(at_once, last_step)
        singles = [planned(one_by_one, plan.step)[0] for plan in plans]
        assert all(map(same_plan, plans, singles))
        for state in (at_once, one_by_one):
            reported_in_full(state, last_step)
            fold(state, Adopted(last_step, state.generation + 1, grown))


@given(sizes, ratios, st.integers(1, 40))
@pure
def test_a_plan_has_as_many_rows_as_the_ratio_asks_for(sizes: list[int], ratio: str, batch: int) -> None:
    state = initial_state(sizes, injection_ratio=ratio, global_batch_size=batch)
    for plan in plans_of(state, 9):
        assert len(plan.rows) == num_rehearsed(plan.step, state.config.ratio, batch)


def test_a_plan_says_how_many_rows_all_steps_before_it_rehearse() -> None:
    state = initial_state([40, 60], injection_ratio="0.3", global_batch_size=9, feedback=Feedback("fenced", 2))
    plans = planned(state, 3)
    reported_in_full(state, 0)
    # Reports of four steps wait behind the fence: what may be known changes within the window.
    plans += plans_of(state, 11)
    assert len({plan.policy_version for plan in plans}) > 2
    assert [plan.rehearsed_before for plan in plans] == [step * 27 // 10 for step in range(12)]


@given(sizes, st.integers(0, 2**63 - 1), st.integers(1, 20), st.booleans())
@pure
def test_within_an_epoch_of_a_stratum_no_sample_repeats(
    sizes: list[int], seed: int, batch: int, with_reports: bool
) -> None:
    state = initial_state(sizes, injection_ratio="1", global_batch_size=batch, seed=seed)
    drawn = []
    for step in range(12):
        drawn += [plan.rows for plan in planned(state, step)]
        if with_reports:
            reported_in_full(state, step)
    rows = np.concatenate(drawn)
    for stratum, size in enumerate(sizes):
        of_stratum = rows[rows["stratum"] == stratum]
        for epoch in np.unique(of_stratum["times_drawn"]):
            samples = of_stratum["sample_id"][of_stratum["times_drawn"] == epoch]
            assert len(np.unique(samples)) == len(samples) <= size
            is_over = (of_stratum["times_drawn"] > epoch).any()
            assert len(samples) == size or not is_over


@given(sizes, st.integers(0, 2**63 - 1))
@pure
def test_times_drawn_counts_the_draws_of_each_sample(sizes: list[int], seed: int) -> None:
    state = initial_state(sizes, injection_ratio="1", seed=seed)
    seen: dict[int, int] = {}
    for plan in plans_of(state, 10):
        for row in np.sort(plan.rows, order=["sample_id", "times_drawn"]):
            seen[row["sample_id"]] = seen.get(row["sample_id"], 0) + 1
            assert row["times_drawn"] == seen[row["sample_id"]]


@given(sizes, st.integers(0, 2**63 - 1))
@pure
def test_every_row_names_a_sample_of_its_stratum_and_its_probability(sizes: list[int], seed: int) -> None:
    state = initial_state(sizes, injection_ratio="1", seed=seed)
    planned(state, 3)
    reported_in_full(state, 0)
    probabilities = state.probabilities()
    members = [
        set(partition_of_sizes(sizes).locate(np.full(size, k), np.arange(size)).tolist())
        for k, size in enumerate(sizes)
    ]
    for plan in plans_of(state, 6):
        for row in plan.rows:
            assert int(row["sample_id"]) in members[row["stratum"]]
            assert row["probability"] == probabilities[row["stratum"]] / sizes[row["stratum"]]


def test_the_next_epoch_of_a_stratum_has_another_order() -> None:
    state = initial_state([50], injection_ratio="1", global_batch_size=1)
    drawn = [int(plan.rows["sample_id"][0]) for plan in plans_of(state, 149)]
    first, second, third = drawn[:50], drawn[50:100], drawn[100:]
    assert sorted(first) == sorted(second) == sorted(third)
    assert first != second != third


def test_another_seed_draws_other_samples() -> None:
    plans = [plans_of(initial_state([1000, 1000], seed=seed), 0)[0].rows["sample_id"].tolist() for seed in range(5)]
    assert all(set(left) != set(right) for left, right in pairwise(plans))


def test_plans_follow_the_probabilities_of_the_policy_and_say_its_version() -> None:
    state = initial_state([1000, 1000], global_batch_size=400, injection_ratio="0.5")
    planned(state, 0)
    rows = state.pending[0].rows.copy()
    flips = np.where(rows["stratum"] == 1, 9, 1)
    fold(state, report_of(0, rows["sample_id"], num_flips=flips.tolist()))
    probabilities = state.probabilities()
    (plan,) = plans_of(state, 1)
    assert plan.policy_version == state.policy_version == 2
    assert probabilities[1] > 0.8
    assert np.bincount(plan.rows["stratum"], minlength=2) == pytest.approx(200 * probabilities, abs=1.0)


def test_neighbours_in_a_plan_are_of_unrelated_strata() -> None:
    state = initial_state([100] * 10, global_batch_size=200, injection_ratio="1")
    (plan,) = plans_of(state, 0)
    neighbours = np.mean(plan.rows["stratum"][:-1] == plan.rows["stratum"][1:])
    assert neighbours < 0.3


def test_a_state_that_is_ahead_has_nothing_to_plan() -> None:
    state = initial_state([10])
    planned(state, 4)
    assert plans_of(state, 4) == []
