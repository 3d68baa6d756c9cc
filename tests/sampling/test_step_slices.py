import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from replay_service.sampling.step_slices import StepSlice, order_in_steps, step_slices


def test_runs_are_of_neighbours_of_one_step() -> None:
    assert step_slices(np.array([4, 4, 2, 4])) == [StepSlice(4, 0, 2), StepSlice(2, 2, 3), StepSlice(4, 3, 4)]
    assert step_slices(np.array([], dtype=np.int64)) == []


@given(st.lists(st.tuples(st.sampled_from([-3, 0, 5, 6, 300, 2**20, 2**40]), st.integers(0, 9))))
def test_places_stand_by_step_and_then_by_key(rows: list[tuple[int, int]]) -> None:
    rows.sort(key=lambda each: each[0])
    step, key = np.array(rows, dtype=np.int64).reshape(-1, 2).T
    expected = sorted(range(len(rows)), key=lambda place: rows[place])
    assert order_in_steps(step, key).tolist() == expected
    assert order_in_steps(step, key.astype(np.uint64)).tolist() == expected
