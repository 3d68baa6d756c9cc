"""When a job rehearses."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_service.sampling.injection import InjectionMode, as_decimal, rows_due
from replay_service.sampling.run_config import RunConfig
from replay_trainer.client import ReplayClient
from replay_trainer.config import read_config
from replay_trainer.errors import InvalidTraining
from replay_trainer.new_run import new_rehearsal
from replay_trainer.timing import MOST_TIMES, lasting
from tests.trainer.test_config import WHOLE, written

LASTING = WHOLE.replace("num_steps = 5", "num_steps = 200") + '\ntiming = "lasting"\n'


def keys(ratio: str, num_steps: int, scheduler: str, mode: InjectionMode = "replace") -> dict[str, Any]:
    return lasting(ratio, num_steps=num_steps, scheduler=scheduler, injection_mode=mode)


def ratios_of(keys: dict[str, Any], num_steps: int) -> list[Fraction]:
    config = RunConfig.from_dict({"global_batch_size": 8, **keys})
    return [config.schedule.at(step, config.ratio) for step in range(num_steps)]


@given(
    st.integers(1, 400),
    st.integers(0, 29_000),
    st.sampled_from(["constant", "linear", "cosine"]),
    st.sampled_from(get_args(InjectionMode)),
)
def test_as_many_rows_are_rehearsed_as_at_one_ratio_whatever_the_length_and_mode(
    num_steps: int, hundred_thousandths: int, scheduler: str, mode: InjectionMode
) -> None:
    ratio = Fraction(hundred_thousandths, 100_000)
    made = keys(as_decimal(ratio), num_steps, scheduler, mode)
    rows = [rows_due(each, made["injection_mode"], 1) for each in ratios_of(made, num_steps)]
    even = rows_due(ratio, mode, 1)
    assert float(sum(rows)) == pytest.approx(float(num_steps * even), abs=1e-8 * num_steps)
    assert float(max(rows)) <= even * MOST_TIMES + 1e-8
    assert len(set(rows)) == (1 if num_steps < 4 or not ratio else 2)


def test_most_rows_come_last_with_a_constant_rate_and_in_the_middle_with_one_that_falls() -> None:
    low, last, middle = Fraction(1, 100), Fraction(17, 100), Fraction(9, 100)
    for scheduler in ("constant", "constant_with_warmup"):
        assert ratios_of(keys("0.05", 8, scheduler), 8) == [low] * 6 + [last] * 2
    for scheduler in ("linear", "polynomial", "cosine"):
        assert ratios_of(keys("0.05", 8, scheduler), 8) == [low] * 2 + [middle] * 4 + [low] * 2


def test_a_scheduler_that_is_not_known_is_refused() -> None:
    with pytest.raises(InvalidTraining, match=r"knows the learning rates constant, .*cosine, and not inverse_sqrt"):
        keys("0.05", 8, "inverse_sqrt")


@pytest.mark.parametrize(
    ("rate", "share"), [(lambda x: (1 + np.cos(np.pi * x)) / 2, 0.37), (lambda x: 1 - x, 0.42)], ids=["cosine", "line"]
)
def test_where_a_step_counts_most(rate: Callable[[Any], Any], share: float) -> None:
    """What the module says: the learning rate times the sum of those before it."""
    x = np.linspace(0.0, 1.0, 100_001)
    rates = rate(x)
    assert round(float(x[np.argmax(rates * np.cumsum(rates))]), 2) == share


@pytest.mark.parametrize(
    ("schedule", "points"), [("cosine", [[50, "0.09"], [150, "0.01"]]), ("constant", [[150, "0.17"]])]
)
def test_a_job_makes_the_schedule_of_its_length_and_its_rate(tmp_path: Path, schedule: str, points: object) -> None:
    settings = read_config(written(tmp_path, f'schedule = "{schedule}"\n{LASTING}')).run_settings()
    assert settings["injection_ratio"] == "0.01"
    assert settings["schedule"] == {"curve": "steps", "points": points}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('schedule = { curve = "warmup" }', "timing lasting makes a schedule of its own"),
        ("injection_fixed = true", "timing lasting makes a schedule of its own"),
    ],
)
def test_a_schedule_of_ones_own_goes_with_no_timing(tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(InvalidTraining, match=said):
        read_config(written(tmp_path, LASTING + more))


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        ('"auto"', "makes a schedule of its own"),
        ('"0.3"', r"up to 3\.4 times the injection ratio, and 0\.3 would come"),
    ],
)
def test_ratios_that_cannot_be_timed_are_refused(tmp_path: Path, ratio: str, said: str) -> None:
    with pytest.raises(InvalidTraining, match=said):
        read_config(written(tmp_path, LASTING.replace('"0.05"', ratio)))


def test_rows_that_are_added_have_no_such_bound(tmp_path: Path) -> None:
    added = LASTING.replace('"0.05"', '"0.5"') + 'injection_mode = "add"\n'
    settings = read_config(written(tmp_path, f'schedule = "constant"\n{added}')).run_settings()
    assert settings["injection_ratio"] == "0.166666667" and settings["schedule"]["points"] == [[150, "0.772727273"]]


def test_in_a_loop_of_ones_own_the_keys_are_asked_for() -> None:
    with (
        ReplayClient("http://127.0.0.1:1") as client,
        pytest.raises(InvalidTraining, match=r"run 'a': .*\.timing\.lasting"),
    ):
        new_rehearsal(client, "a", "wiki", global_batch_size=8, injection_ratio="0.05", timing="lasting")
