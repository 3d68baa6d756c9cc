import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.sampling.events import Adopted, Closed, Configured
from replay_service.sampling.fold import fold
from replay_service.sampling.run_config import Feedback, RunConfig
from replay_service.sampling.run_state import RunState
from replay_service.sampling.state_bytes import STATE_VERSION, from_bytes, to_bytes
from tests.sampling.worlds import created_of, image, planned, report_of

SIZES = [7, 0, 5, 9]


def a_life(seed: int, num_steps: int) -> RunState:
    """A state that has seen plans, some reports, a change and an end."""
    config = RunConfig(global_batch_size=6, injection_ratio="0.35", seed=seed, report_window_steps=4)
    state = RunState.initial(created_of(SIZES, 2, config))
    rng = np.random.default_rng(seed)
    for plan in planned(state, num_steps - 1):
        waiting = state.pending.get(plan.step)
        if waiting is not None and rng.random() < 0.7:
            ids = waiting.rows["sample_id"][: 1 + rng.integers(2)]
            fold(state, report_of(plan.step, ids, num_flips=int(rng.integers(9))))
    fold(state, Configured(num_steps - 1, config.changed(floor=0.4, injection_ratio="0.25")))
    if seed % 3:
        fold(state, Adopted(num_steps - 1, 2, tuple(size + seed % 5 for size in (*SIZES, 4, 6))))
        planned(state, num_steps + 1)
    if seed % 2:
        fold(state, Closed(state.next_step - 1))
    return state


@given(st.integers(0, 1000), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_a_state_is_read_back_to_the_byte(seed: int, num_steps: int) -> None:
    state = a_life(seed, num_steps)
    again = from_bytes(to_bytes(state))
    assert image(again) == image(state)
    assert to_bytes(again) == to_bytes(state)


def test_a_state_that_was_read_back_goes_on_as_the_first() -> None:
    state = a_life(2, 9)
    again = from_bytes(to_bytes(state))
    for each in (state, again):
        (last,) = planned(each, 11)[-1:]
        fold(each, report_of(last.step, np.unique(last.rows["sample_id"])))
    assert to_bytes(again) == to_bytes(state)


def test_the_order_in_which_steps_were_left_waiting_does_not_show() -> None:
    state = a_life(2, 9)
    other = from_bytes(to_bytes(state))
    other.pending = dict(reversed(other.pending.items()))
    assert to_bytes(other) == to_bytes(state)


def holding_back(order: Sequence[int]) -> RunState:
    """A fenced state that knows all reports of its two steps, which came in this order, and may use none yet."""
    config = RunConfig(global_batch_size=6, injection_ratio="0.5", feedback=Feedback("fenced", 4))
    state = RunState.initial(created_of(SIZES, 2, config))
    planned(state, 1)
    measured = [(step, sample) for step in (0, 1) for sample in state.pending[step].rows["sample_id"].tolist()]
    for step, sample in (measured[i] for i in order if i < len(measured)):
        fold(state, report_of(step, [sample], num_flips=sample % 7))
    return state


def test_what_a_fenced_run_holds_back_is_read_back_to_the_byte() -> None:
    state = holding_back(range(6))
    again = from_bytes(to_bytes(state))
    assert image(again) == image(state)
    for each in (state, again):
        planned(each, 5)
    assert to_bytes(again) == to_bytes(state)
    assert (again.held, again.recent.origin) == ({}, 1)


@given(st.permutations(range(6)))
@settings(max_examples=20, deadline=None)
def test_the_order_in_which_reports_came_that_are_held_back_does_not_show(order: list[int]) -> None:
    assert to_bytes(holding_back(order)) == to_bytes(holding_back(range(6)))


def test_different_states_have_different_bytes() -> None:
    assert len({to_bytes(a_life(seed, 5)) for seed in range(20)}) == 20


def test_another_version_is_refused() -> None:
    data = bytearray(to_bytes(a_life(0, 3)))
    struct.pack_into("<I", data, 8, STATE_VERSION + 1)
    with pytest.raises(ValueError, match=f"version {STATE_VERSION + 1}"):
        from_bytes(bytes(data))


def test_what_is_no_state_is_refused() -> None:
    data = to_bytes(a_life(0, 3))
    for damaged in (b"", b"something else entirely", b"journal." + data[8:], data + b"\0"):
        with pytest.raises(ValueError, match="state"):
            from_bytes(damaged)
