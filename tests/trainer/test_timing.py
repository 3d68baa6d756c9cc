"""When a job rehearses."""

from fractions import Fraction
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_service.sampling.run_config import RunConfig
from replay_trainer.client import ReplayClient
from replay_trainer.config import read_config
from replay_trainer.errors import InvalidTraining
from replay_trainer.new_run import new_rehearsal
from replay_trainer.timing import Decay, lasting, most_often
from tests.trainer.test_config import WHOLE, written

LASTING = WHOLE.replace("num_steps = 5", "num_steps = 200") + '\ntiming = "lasting"\n'


def ratios_of(keys: dict[str, object], num_steps: int) -> list[Fraction]:
    config = RunConfig.from_dict({"global_batch_size": 8, **keys})
    return [config.schedule.at(step, config.ratio) for step in range(num_steps)]


@given(st.integers(1, 100), st.integers(0, 29_000), st.sampled_from(get_args(Decay)))
def test_as_many_rows_are_rehearsed_as_at_a_constant_ratio(
    quarter: int, hundred_thousandths: int, decay: Decay
) -> None:
    ratio, num_steps = Fraction(hundred_thousandths, 100_000), 4 * quarter
    found = ratios_of(lasting(str(float(ratio)), num_steps, decay), num_steps)
    assert float(sum(found)) == pytest.approx(float(num_steps * ratio), abs=1e-8 * num_steps)
    assert len(set(found)) == (2 if ratio else 1) and float(max(found)) <= ratio * most_often("lasting") + 1e-8


def test_most_rows_come_last_with_a_constant_rate_and_in_the_middle_with_one_that_falls() -> None:
    low, last, middle = Fraction(1, 100), Fraction(17, 100), Fraction(9, 100)
    assert ratios_of(lasting("0.05", 8, "constant"), 8) == [low] * 6 + [last] * 2
    for decay in ("linear", "cosine"):
        assert ratios_of(lasting("0.05", 8, decay), 8) == [low] * 2 + [middle] * 4 + [low] * 2


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_a_job_of_few_steps_has_one_ratio(num_steps: int) -> None:
    assert ratios_of(lasting("0.05", num_steps, "cosine"), num_steps) == [Fraction(1, 20)] * num_steps


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


def test_in_a_loop_of_ones_own_the_keys_are_asked_for() -> None:
    with (
        ReplayClient("http://127.0.0.1:1") as client,
        pytest.raises(InvalidTraining, match=r"run 'a': .*\.timing\.lasting"),
    ):
        new_rehearsal(client, "a", "wiki", global_batch_size=8, injection_ratio="0.05", timing="lasting")
