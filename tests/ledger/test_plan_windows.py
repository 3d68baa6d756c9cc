import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from replay_service.ledger.plan_windows import MOST_ROWS_KEPT, RecentPlans
from replay_service.sampling.events import PLANNED_ROW, Planned, Sealed


def plan(step: int, num_rows: int) -> Planned:
    return Planned(step, 1, 0, np.zeros(num_rows, PLANNED_ROW))


@given(st.lists(st.integers(0, MOST_ROWS_KEPT // 3), max_size=20))
def test_the_latest_plans_are_kept_as_far_as_there_is_room_and_the_last_one_always(sizes: list[int]) -> None:
    recent = RecentPlans()
    for step, size in enumerate(sizes):
        recent.add([plan(step, size), Sealed(step)])
        assert recent.find(step, 1) is not None
    kept = [step for step in range(len(sizes)) if recent.find(step, 1) is not None]
    assert kept == list(range(len(sizes)))[-len(kept) :] if kept else not sizes
    assert sum(sizes[step] for step in kept) <= MOST_ROWS_KEPT
    for step in kept:
        window = recent.find(step, len(sizes) - step)
        assert window is not None
        assert [each.step for each in window] == list(range(step, len(sizes)))


def test_a_plan_that_is_larger_than_the_room_is_kept_alone() -> None:
    recent = RecentPlans()
    recent.add([plan(0, 1), plan(1, MOST_ROWS_KEPT + 1)])
    assert recent.find(0, 1) is None
    assert recent.find(1, 1) is not None


def test_a_window_is_found_as_a_whole_or_not_at_all() -> None:
    recent = RecentPlans()
    recent.add([plan(5, 1), plan(6, 1)])
    assert recent.find(4, 2) is recent.find(6, 2) is recent.find(7, 1) is None
    recent.forget()
    assert recent.find(5, 1) is None
