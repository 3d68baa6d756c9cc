import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from replay_service.sampling.fold import fold
from replay_service.sampling.pending import Awaited
from replay_service.sampling.step_slices import StepSlice
from tests.sampling.worlds import initial_state, plan_by_hand, report_of


@given(st.lists(st.integers(-1, 9)))
def test_of_equal_samples_the_first_awaits_the_report(ids: list[int]) -> None:
    state = initial_state([50])
    fold(state, plan_by_hand(0, [2, 3, 5, 7], [0, 0, 0, 0]))
    fold(state, report_of(0, [5]))
    awaited = Awaited(state.pending, [StepSlice(0, 0, len(ids))], np.array(ids, dtype=np.int64)).are_first()
    assert awaited.tolist() == [each in {2, 3, 7} and each not in ids[:i] for i, each in enumerate(ids)]


def test_of_each_step_its_own_samples_await_reports() -> None:
    state = initial_state([50])
    for step, ids in enumerate([[2, 3], [3, 5], [2, 9]]):
        fold(state, plan_by_hand(step, ids, [0, 0]))
    fold(state, report_of(1, [3, 5]))
    slices = [StepSlice(2, 0, 3), StepSlice(1, 3, 5), StepSlice(7, 5, 6), StepSlice(0, 6, 9), StepSlice(2, 9, 10)]
    ids = np.array([9, 3, 3, 3, 5, 2, 3, 5, 2, 2], dtype=np.int64)
    awaited = Awaited(state.pending, slices, ids).are_first()
    assert awaited.tolist() == [True, False, False, False, False, False, True, False, True, True]
