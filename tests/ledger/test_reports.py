"""What a row of a report may say, by itself and before anything is known of plans."""

import numpy as np
import pytest

from replay_service.errors import InvalidReport
from replay_service.ledger.reports import by_step_and_rank, check_values, in_order_of_steps
from replay_service.wire.losses import GAINS_NOT_TOLD, LOSS_ROW, MOST_NATS

RIGHT = {"loss_nats": 2.5, "num_tokens": 10, "num_flips": 4, "num_gains": 6, "rank": 0, "sample_id": 7}


def rows_with(**changes: float) -> np.ndarray:
    """Three rows, of which the second is changed."""
    rows = np.zeros(3, dtype=LOSS_ROW)
    for name, value in RIGHT.items():
        rows[name] = value
    for name, value in changes.items():
        rows[name][1] = value
    return rows


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss_nats": MOST_NATS},
        {"loss_nats": -MOST_NATS},
        {"num_tokens": 0, "num_flips": 0, "num_gains": 0},
        {"num_tokens": 1, "num_flips": 0, "num_gains": 1},
        {"num_flips": 10, "num_gains": 0},
        {"num_flips": 0, "num_gains": 10},
        {"num_gains": GAINS_NOT_TOLD},
        {"rank": 1},
    ],
)
def test_what_can_be_is_taken(changes: dict[str, float]) -> None:
    check_values(rows_with(**changes))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"loss_nats": np.nan},
            "loss_nats is not a finite number; report such rows with num_tokens 0: they could not be measured",
        ),
        ({"loss_nats": 2 * MOST_NATS}, f"loss_nats is beyond {MOST_NATS:,.0f} nats per token"),
        ({"num_tokens": -1}, "num_tokens is negative"),
        ({"num_flips": -1}, "num_flips is not in [0, num_tokens]"),
        ({"num_flips": 11}, "num_flips is not in [0, num_tokens]"),
        ({"num_gains": GAINS_NOT_TOLD - 1}, "num_gains is negative"),
        (
            {"num_gains": 7},
            "num_gains is more than num_tokens - num_flips; a gain is a prediction that the base model got wrong, and "
            "a flip one that it got right, so none is both",
        ),
        ({"rank": -1}, "rank is negative"),
    ],
)
def test_what_cannot_be_is_named_with_its_first_row(changes: dict[str, float], problem: str) -> None:
    with pytest.raises(InvalidReport) as caught:
        check_values(rows_with(**changes))
    assert caught.value.detail == f"1 of 3 rows: {problem} (first at row 1, sample 7); nothing was folded in"
    assert caught.value.extensions["rows"] == [1]


def test_rows_are_put_in_the_order_of_steps_and_keep_their_order_within_one() -> None:
    step = np.array([3, 1, 3, 1, 2])
    assert in_order_of_steps(step, np.array([0, 1, 2, 3, 4])).tolist() == [1, 3, 4, 0, 2]
    assert in_order_of_steps(step, np.array([2, 0, 4])).tolist() == [4, 2, 0]


@pytest.mark.parametrize("ranks", [[0, 0, 1, 0, 2], [1, 0, 0, 2, 0], [0, 1, 2, 1, 0]])
def test_groups_are_of_one_step_and_rank_each(ranks: list[int]) -> None:
    rows = np.zeros(5, dtype=LOSS_ROW)
    rows["step"], rows["rank"], rows["sample_id"] = [4, 4, 4, 9, 9], ranks, range(5)
    ordered, groups = by_step_and_rank(rows)
    expected = sorted(range(5), key=lambda row: (rows["step"][row], rows["rank"][row]))
    assert ordered["sample_id"].tolist() == expected
    assert [end for *_, end in groups][-1] == 5
    for step, rank, first, end in groups:
        assert {(each["step"], each["rank"]) for each in ordered[first:end]} == {(step, rank)}
    assert len({group[:2] for group in groups}) == len(groups)
