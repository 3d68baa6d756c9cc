from replay_service.sampling.events import Trained
from replay_service.sampling.fold import fold, fold_all
from replay_service.sampling.state_bytes import from_bytes, to_bytes
from replay_service.sampling.trained import TrainedCounts, TrainedTotals
from tests.sampling.worlds import image, initial_state, planned

ROWS = TrainedCounts(10, 2, 700, 90)


def test_counts_of_all_ranks_add_up() -> None:
    totals = TrainedTotals()
    for rank in range(3):
        totals.add(rank, 5, ROWS)
    assert totals.counts == TrainedCounts(30, 6, 2100, 270)
    assert totals.counts.minus(ROWS) == ROWS.plus(ROWS)


def test_a_rank_has_reported_the_steps_before_its_next_one() -> None:
    totals = TrainedTotals()
    totals.add(1, 5, ROWS)
    assert [totals.has_reported(1, step) for step in (0, 4, 5)] == [True, True, False]
    assert not totals.has_reported(0, 0)


def test_counts_are_part_of_the_state_and_no_plan_depends_on_them() -> None:
    one, other = (initial_state([9, 8]) for _ in range(2))
    planned(one, 3)
    fold_all(one, [Trained(3, rank, 0, ROWS) for rank in (1, 0)])
    again = from_bytes(to_bytes(one))
    assert (again.trained.counts, again.trained.next_step) == (ROWS.plus(ROWS), {0: 4, 1: 4})
    assert to_bytes(again) == to_bytes(one)
    assert to_bytes(one) != to_bytes(other)
    planned(other, 3)
    assert [each.rows.tolist() for each in planned(one, 6)] == [each.rows.tolist() for each in planned(other, 6)]


def test_the_order_in_which_ranks_report_does_not_show() -> None:
    one, other = (initial_state([9, 8]) for _ in range(2))
    for state, ranks in ((one, (0, 1)), (other, (1, 0))):
        for rank in ranks:
            fold(state, Trained(3, rank, 0, ROWS))
    assert to_bytes(one) == to_bytes(other)
    assert image(one) == image(other)
