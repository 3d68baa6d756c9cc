from typing import Any

import numpy as np
import pytest

from replay_service.errors import UnusableRuns
from replay_service.planning.runs import REQUIRED, Runs, num_levels
from tests.planning.worlds import World


def columns(**changed: Any) -> dict[str, Any]:
    runs = World().runs()
    return {name: getattr(runs, name).copy() for name in (*REQUIRED, "rehearsal_weight", "target_loss")} | changed


def test_a_missing_column_is_named() -> None:
    given = columns()
    del given["base_loss"]
    with pytest.raises(UnusableRuns, match="no column base_loss; each row needs num_parameters"):
        Runs.of(given)


def test_columns_that_may_be_missing() -> None:
    given = columns()
    del given["rehearsal_weight"], given["target_loss"]
    runs = Runs.of(given)
    assert runs.target_loss is None
    assert runs.weighted_ratio.tolist() == runs.injection_ratio.tolist()
    assert runs.take(np.array([1, 1])).target_loss is None


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        *((name, np.nan, f"{name} is missing or not finite in 1 of 45 runs") for name in columns()),
        ("base_loss", np.inf, "base_loss is missing or not finite"),
        ("injection_ratio", 5.0, r"injection_ratio is not in \[0, 1\) .*write 5 % as 0.05"),
        ("injection_ratio", -0.1, r"injection_ratio is not in \[0, 1\)"),
        ("num_parameters", 0.0, "num_parameters is not above 0"),
        ("rehearsal_weight", -1.0, "rehearsal_weight is not above 0"),
        ("pretraining_loss", 1.0, "nothing was forgotten .*measure on more held-out text, or leave those rows out"),
    ],
)
def test_a_run_that_cannot_be_used_is_named_with_the_remedy(name: str, value: float, said: str) -> None:
    given = columns()
    given[name][6] = value
    with pytest.raises(UnusableRuns, match=said.replace(" .*", " in 1 of 45 runs .*")) as raised:
        Runs.of(given)
    assert "(run 7)" in raised.value.detail


def test_many_runs_that_cannot_be_used_are_counted() -> None:
    with pytest.raises(UnusableRuns, match=r"45 of 45 runs \(run 1, 2, 3, 4, 5, \.\.\.\)"):
        Runs.of(columns(base_loss=np.full(45, 9.0)))


@pytest.mark.parametrize(
    ("values", "factor", "levels"),
    [
        ((1.0, 1.0), 1.5, 1),
        ((0.0, 0.05, 0.051), 1.1, 2),
        ((0.01, 0.05, 0.0), 1.1, 3),
        ((100.0, 95.0, 90.0), 1.5, 1),
        ((0.0, 0.0), 1.1, 1),
        ((1e6, 2e6, 8e6), 1.5, 3),
    ],
)
def test_levels_differ_by_more_than_the_factor(values: tuple[float, ...], factor: float, levels: int) -> None:
    assert num_levels(np.array(values), factor) == levels
