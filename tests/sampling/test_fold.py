from itertools import groupby
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.sampling.events import Adopted, Closed, Configured, Event
from replay_service.sampling.fold import fold, fold_all
from replay_service.sampling.run_config import Feedback
from replay_service.sampling.run_state import RunState
from replay_service.sampling.state_bytes import to_bytes
from replay_service.sampling.sums import FIRST_VISITS
from tests.sampling.worlds import image, initial_state, lived, plan_by_hand, planned, plans_of, report_of

LATER_VISITS = 1


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_folding_a_journal_again_gives_the_same_state(data: st.DataObject) -> None:
    journal, state = lived(data)
    again = initial_state([5, 9, 3, 8], num_quantiles=2, report_window_steps=6)
    for event in journal:
        fold(again, event)
    assert image(again) == image(state)
    assert again.probabilities().tobytes() == state.probabilities().tobytes()


@given(st.data(), st.sampled_from(["latest", "fenced"]), st.sampled_from([0.3, 1.0, 2.5, 500.0]))
@settings(max_examples=150, deadline=None)
def test_folding_reports_at_once_gives_the_bytes_of_folding_one_after_the_other(
    data: st.DataObject, mode: Literal["latest", "fenced"], half_life: float
) -> None:
    settings: dict[str, object] = {"feedback": Feedback(mode, 4), "half_life_steps": half_life}
    states = [initial_state([5, 2, 3, 4], num_quantiles=2, **settings) for _ in range(2)]
    for _ in range(2):
        for plan in plans_of(states[0], states[0].next_step + 3):
            for state in states:
                fold(state, plan)
        events = drawn_reports(data, states[0])
        events.insert(data.draw(st.integers(0, len(events)), label="a change of course"), Closed(3))
        longer = states[0].config.changed(half_life_steps=2 * half_life)
        events.insert(data.draw(st.integers(0, len(events)), label="another half-life"), Configured(3, longer))
        fold_all(states[0], events)
        for event in events:
            fold(states[1], event)
        assert to_bytes(states[0]) == to_bytes(states[1])
        assert image(states[0]) == image(states[1])
        assert states[0].probabilities().tobytes() == states[1].probabilities().tobytes()


def drawn_reports(data: st.DataObject, state: RunState) -> list[Event]:
    """Reports of some pending samples: of steps in any order, and of ranks."""
    waiting = [(step, sample) for step, each in state.pending.items() for sample in each.rows["sample_id"].tolist()]
    chosen = data.draw(st.lists(st.sampled_from(waiting), max_size=12, unique=True), label="step and sample")
    reports: list[Event] = []
    for (step, rank), neighbours in groupby(chosen, lambda each: (each[0], each[1] % 2)):
        ids = [sample for _, sample in neighbours]
        losses = data.draw(st.lists(st.floats(0, 9), min_size=len(ids), max_size=len(ids)), label="losses")
        tokens = data.draw(st.lists(st.sampled_from([0, 3]), min_size=len(ids), max_size=len(ids)), label="tokens")
        flips = [each // 3 for each in tokens]
        reports.append(report_of(step, ids, rank=rank, loss=losses, num_tokens=tokens, num_flips=flips))
    return reports


def test_a_plan_moves_the_cursors_and_awaits_its_reports() -> None:
    state = initial_state([50, 50, 50])
    fold(state, plan_by_hand(0, [9, 4, 7], [2, 0, 2]))
    assert state.next_step == 1
    assert state.cursors.num_draws.tolist() == [1, 0, 2]
    assert state.pending[0].rows["sample_id"].tolist() == [4, 7, 9]
    assert state.policy_version == 1


def test_a_report_counts_towards_the_totals_of_its_strata_and_the_policy_version() -> None:
    state = initial_state([50, 50, 50])
    fold(state, plan_by_hand(0, [9, 4, 7], [2, 0, 2]))
    fold(state, report_of(0, [7, 9], loss=[3.0, 1.5], base_loss=1.0, num_tokens=10, num_flips=[4, 1]))
    totals = state.totals
    assert (totals.samples.tolist(), totals.tokens.tolist(), totals.flips.tolist()) == (
        [0, 0, 2],
        [0, 0, 20],
        [0, 0, 5],
    )
    assert (totals.loss_nats.tolist(), totals.excess_nats.tolist()) == ([0.0, 0.0, 4.5], [0.0, 0.0, 2.5])
    assert state.pending[0].rows["sample_id"].tolist() == [4]
    assert state.policy_version == 2


def test_a_step_that_is_reported_in_full_awaits_nothing() -> None:
    state = initial_state([50])
    fold(state, plan_by_hand(0, [1, 2], [0, 0]))
    fold(state, report_of(0, [2], rank=1))
    fold(state, report_of(0, [1], rank=0))
    assert state.pending == {}


def test_a_sample_drawn_twice_in_a_step_awaits_one_report() -> None:
    state = initial_state([50])
    fold(state, plan_by_hand(0, [3, 3, 3], [0, 0, 0]))
    assert state.cursors.num_draws.tolist() == [3]
    fold(state, report_of(0, [3]))
    assert state.totals.samples.tolist() == [1]
    assert state.pending == {}


def test_first_and_later_visits_are_kept_apart() -> None:
    state = initial_state([50])
    fold(state, plan_by_hand(0, [1, 2], [0, 0], times_drawn=1))
    fold(state, plan_by_hand(1, [1], [0], times_drawn=2))
    fold(state, plan_by_hand(2, [2], [0], times_drawn=3))
    for step, sample, flips in ((0, 1, 10), (1, 1, 5), (2, 2, 5)):
        fold(state, report_of(step, [sample], num_flips=flips))
    half_life = state.config.half_life_steps
    assert state.recent.count[FIRST_VISITS, 0] == pytest.approx(0.5 ** (2 / half_life))
    assert state.recent.count[LATER_VISITS, 0] == pytest.approx(0.5 ** (1 / half_life) + 1)
    assert state.recent.damage[FIRST_VISITS, 0] == pytest.approx(0.5 ** (2 / half_life))
    assert state.recent.damage[LATER_VISITS, 0] == pytest.approx(0.5 * (0.5 ** (1 / half_life) + 1))


def with_ten_plans(half_life_steps: float = 4.0) -> RunState:
    state = initial_state([50, 50], half_life_steps=half_life_steps)
    for step in range(10):
        fold(state, plan_by_hand(step, [2 * step, 2 * step + 1], [0, 1]))
    return state


def test_a_report_counts_half_when_reports_are_a_half_life_further() -> None:
    state = with_ten_plans(half_life_steps=4.0)
    fold(state, report_of(0, [0], num_flips=10))
    fold(state, report_of(8, [17], num_flips=10))
    assert state.recent.damage.sum(axis=0).tolist() == [0.25, 1.0]
    assert state.recent.count.sum(axis=0).tolist() == [0.25, 1.0]


def test_reports_keep_their_weight_when_the_half_life_changes_and_fade_by_the_new_one_from_then_on() -> None:
    state = with_ten_plans(half_life_steps=4.0)
    fold(state, report_of(0, [0], num_flips=10))
    fold(state, report_of(4, [9], num_flips=10))
    fold(state, Configured(9, state.config.changed(half_life_steps=2.0)))
    fold(state, report_of(8, [17], num_flips=10))
    assert state.recent.damage.sum(axis=0).tolist() == [0.5 * 0.25, 0.25 + 1.0]
    assert state.recent.count.sum(axis=0).tolist() == [0.5 * 0.25, 0.25 + 1.0]


@given(st.permutations(range(10)))
@settings(max_examples=30, deadline=None)
def test_the_decay_follows_the_steps_and_not_the_order_of_the_reports(order: list[int]) -> None:
    in_order, shuffled = with_ten_plans(), with_ten_plans()
    for state, steps in ((in_order, range(10)), (shuffled, order)):
        for step in steps:
            fold(state, report_of(step, [2 * step], num_flips=step))
    assert shuffled.recent.origin == in_order.recent.origin == 9
    assert shuffled.recent.count == pytest.approx(in_order.recent.count)
    assert shuffled.recent.damage == pytest.approx(in_order.recent.damage)


def test_the_decay_does_not_depend_on_how_often_reports_come() -> None:
    at_once, one_by_one = with_ten_plans(), with_ten_plans()
    fold(at_once, report_of(5, [10, 11], num_flips=3))
    fold(one_by_one, report_of(5, [10], num_flips=3))
    fold(one_by_one, report_of(5, [11], num_flips=3, rank=1))
    assert one_by_one.recent.damage == pytest.approx(at_once.recent.damage)
    assert one_by_one.recent.count == pytest.approx(at_once.recent.count)


def test_a_plan_is_no_longer_awaited_once_the_window_has_passed() -> None:
    state = initial_state([500], report_window_steps=3)
    for last_step in range(10):
        planned(state, last_step)
        assert sorted(state.pending) == list(range(max(0, last_step - 2), last_step + 1))


def test_the_signal_of_the_run_decides_what_is_damage() -> None:
    damage = {}
    for signal in ("token_flip", "excess_loss", "threshold"):
        state = initial_state([50], signal=signal, learnable_nats=1.0, delta_nats=0.5)
        fold(state, plan_by_hand(0, [1], [0]))
        fold(state, report_of(0, [1], loss=3.5, base_loss=1.0, num_tokens=10, num_flips=2))
        damage[signal] = state.recent.damage.sum()
    assert damage == {"token_flip": 0.2, "excess_loss": 2.5, "threshold": 1.0}


def measured(state: RunState) -> list[bytes]:
    """What reports have changed of a state."""
    totals = (getattr(state.totals, each) for each in ("samples", "tokens", "flips", "loss_nats", "excess_nats"))
    return [array.tobytes() for array in (*totals, state.recent.count, state.recent.damage)]


def test_of_a_sample_that_could_not_be_measured_nothing_is_learned_and_no_report_is_awaited() -> None:
    state = initial_state([50, 50])
    fold(state, plan_by_hand(0, [1, 2, 3], [0, 0, 1]))
    before = measured(state), state.policy_version
    fold(state, report_of(0, [2], loss=0.0, base_loss=0.0, num_tokens=0, num_flips=0))
    assert (measured(state), state.policy_version) == before
    assert state.pending[0].rows["sample_id"].tolist() == [1, 3]


def test_rows_that_were_measured_count_beside_rows_that_were_not() -> None:
    state, other = initial_state([50, 50]), initial_state([50, 50])
    for each in (state, other):
        fold(each, plan_by_hand(0, [1, 2, 3], [0, 0, 1]))
    fold(state, report_of(0, [1, 2, 3], num_tokens=[10, 0, 10], num_flips=[4, 0, 1]))
    fold(other, report_of(0, [1, 3], num_flips=[4, 1]))
    assert measured(state) == measured(other)
    assert (state.pending, list(other.pending)) == ({}, [0])


def test_a_fenced_run_holds_back_nothing_of_what_could_not_be_measured() -> None:
    state = initial_state([50], feedback=Feedback("fenced", 2))
    fold(state, plan_by_hand(0, [1, 2], [0, 0]))
    assert state.awaited_before(2) == [0]
    fold(state, report_of(0, [1, 2], loss=0.0, base_loss=0.0, num_tokens=0, num_flips=0))
    assert (state.held, state.awaited_before(2)) == ({}, [])


def test_a_later_generation_brings_rows_and_strata_of_which_nothing_is_known_yet() -> None:
    state = initial_state([5, 9], num_quantiles=2)
    fold(state, plan_by_hand(0, [1, 2], [0, 1]))
    fold(state, report_of(0, [1, 2], num_flips=[8, 2]))
    before, version = state.damage_rates(), state.policy_version
    known = [array.copy() for array in (state.totals.samples, state.recent.count, state.recent.damage)]
    fold(state, Adopted(0, 3, (7, 9, 4, 6)))
    assert (state.generation, state.generation_since, state.policy_version) == (3, 1, version + 1)
    assert (state.num_strata, state.cursors.sizes.tolist()) == (4, [7, 9, 4, 6])
    for grown, old in zip((state.totals.samples, state.recent.count, state.recent.damage), known, strict=True):
        assert np.array_equal(grown[..., :2], old)
        assert not grown[..., 2:].any()
    rates = state.damage_rates()
    assert rates[:2] == pytest.approx(before)
    # Of the new group only the quantiles are known: that of the damaged one is thought to be damaged more.
    assert rates[2] > rates[3]
    assert state.probabilities().sum() == pytest.approx(1.0)


def test_gains_are_counted_of_the_reports_that_tell_them() -> None:
    state = initial_state([5, 9])
    fold(state, plan_by_hand(0, [1, 2, 3], [0, 1, 1]))
    fold(state, report_of(0, [1, 2], num_gains=[3, 4]))
    fold(state, report_of(0, [3], num_gains=-1))
    assert state.totals.gains.tolist() == [3, 4]
    assert state.totals.tokens_with_gains.tolist() == [10, 10]
    assert state.totals.tokens.tolist() == [10, 20]


def test_reports_of_plans_from_before_a_later_generation_still_count() -> None:
    state = initial_state([5, 9])
    fold(state, plan_by_hand(0, [1, 2], [0, 1]))
    fold(state, Adopted(0, 2, (5, 12, 8)))
    fold(state, report_of(0, [1, 2], num_flips=[8, 2]))
    assert state.totals.flips.tolist() == [8, 2, 0]
    fold(state, plan_by_hand(1, [3, 4, 4], [2, 1, 1]))
    fold(state, report_of(1, [3, 4], num_flips=[7, 1]))
    assert state.totals.flips.tolist() == [8, 3, 7]


def test_what_a_fenced_run_holds_back_survives_a_later_generation() -> None:
    state = initial_state([5, 9], feedback=Feedback("fenced", 2))
    fold(state, plan_by_hand(0, [1, 2], [0, 1]))
    fold(state, report_of(0, [1, 2], num_flips=[8, 2]))
    fold(state, Adopted(0, 2, (5, 9, 8)))
    assert state.recent.count.sum() == 0
    for step in (1, 2):
        fold(state, plan_by_hand(step, [10 + step], [2]))
    assert state.recent.damage.sum(axis=0).tolist() == pytest.approx([0.8, 0.2, 0.0])
