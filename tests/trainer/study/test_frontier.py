import numpy as np
import pytest

from replay_trainer.study.frontier import Frontier

CURVE = Frontier(
    rows=np.array([0.0, 10.0, 40.0]),
    forgetting=np.array([[1.0, 0.6, 0.4], [1.0, 0.5, 0.55]]),
    target_loss=np.array([[2.0, 2.1, 2.3], [2.2, 2.1, 2.3]]),
)


def both(value: float) -> np.ndarray:
    return np.array([value, value])


def test_at_the_ratios_that_were_swept_it_is_what_was_measured() -> None:
    for index, rows in enumerate(CURVE.rows):
        forgetting, loss = CURVE.at_rows(both(rows))
        assert forgetting == pytest.approx(CURVE.forgetting[:, index])
        assert loss == pytest.approx(CURVE.target_loss[:, index])
    assert CURVE.at_rows(both(1000.0))[0] == pytest.approx(CURVE.forgetting[:, -1])


@pytest.mark.parametrize("rows", [0.0, 3.0, 10.0, 25.0, 40.0])
def test_rows_for_what_so_many_rows_forget_are_these(rows: float) -> None:
    forgetting, _ = CURVE.at_rows(both(rows))
    places, outside = CURVE.rows_for(forgetting)
    assert CURVE.unscaled(places)[0] == pytest.approx(rows)
    assert outside[0] == 0


def test_what_no_ratio_reaches_is_outside() -> None:
    _, outside = CURVE.rows_for(both(0.1))
    assert outside.tolist() == [1, 1]
    places, outside = CURVE.rows_for(both(1.5))
    assert outside.tolist() == [-1, -1] and places == pytest.approx([0.0, 0.0])


def test_more_rows_that_forget_more_are_of_no_use() -> None:
    places, outside = CURVE.rows_for(both(0.5))
    assert CURVE.unscaled(places)[1] == pytest.approx(10.0)
    assert outside[1] == 0


def test_at_a_target_loss_it_is_the_least_forgetting_that_costs_no_more() -> None:
    forgetting, inside = CURVE.at_target_loss(both(2.2))
    assert forgetting == pytest.approx([0.5, 0.5]) and inside.tolist() == [True, True]
    assert CURVE.at_target_loss(both(1.9))[1].tolist() == [False, False]
    assert CURVE.at_target_loss(both(2.4))[1].tolist() == [False, False]
