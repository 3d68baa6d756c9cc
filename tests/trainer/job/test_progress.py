import io
import re
from typing import Any

import pytest
from rich.console import Console

from replay_trainer.job.progress import ProgressLine

VALUES = {
    "loss": 1.5,
    "target_loss": 1.25,
    "forgetting": {"nats": 0.0124, "low": 0.003, "high": 0.0218},
    "num_rehearsed": 1,
    "num_rows": 50,
    "waited_s": 0.5,
    "step_s": 2.0,
    "num_tokens": 512,
}


class Clock:
    """Two seconds a step."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def lines_of(num_steps: int, values: dict[str, Any], *, first_step: int = 0, terminal: bool = False) -> str:
    shown, clock = io.StringIO(), Clock()
    console = Console(file=shown, width=200, force_terminal=terminal)
    with ProgressLine(console, "train", num_steps, clock, first_step=first_step) as line:
        for step in range(first_step, num_steps):
            clock.seconds += 2
            line.show(step, values)
    return shown.getvalue()


def test_a_line_shows_all_that_was_measured() -> None:
    first, *_, last = lines_of(4, VALUES).splitlines()
    figures = "loss 1.500  target 1.250  forgetting +0.012 (+0.00 to +0.02)  rehearsal 2.0%  waiting 25%"
    assert first == f"train  step 1/4  {figures}  6 s left"
    assert last == f"train  step 4/4  {figures}"


def test_a_line_leaves_out_what_was_not_measured() -> None:
    assert lines_of(1, {"target_loss": None}).splitlines() == ["train  step 1/1"]


def test_a_line_says_that_forgetting_is_not_known() -> None:
    unknown = {"forgetting": {"nats": None, "low": None, "high": None}}
    assert lines_of(1, unknown).splitlines() == ["train  step 1/1  forgetting not known yet"]


def test_a_line_says_how_the_ratio_is_met_and_which_reports_are_late() -> None:
    told = {"rows_due": 412.35, "rows_rehearsed": 412, "late_steps": 3}
    assert lines_of(1, told).splitlines() == ["train  step 1/1  3 late  rehearsed 412 of 412.35 due"]
    assert "late" not in lines_of(1, told | {"late_steps": 0})


def test_the_advice_of_a_predicted_gain_is_a_line_of_its_own() -> None:
    for gain in ({"advice": None, "reason": "few reports"}, None):
        assert lines_of(1, {"predicted_gain": gain}).splitlines() == ["train  step 1/1"]
    assert lines_of(1, {"predicted_gain": {"advice": "damage is even here"}}).splitlines() == [
        "train  step 1/1",
        "train  damage is even here",
    ]
    assert "damage is even here" in lines_of(1, {"predicted_gain": {"advice": "damage is even here"}}, terminal=True)


def test_rehearsal_is_the_share_of_the_rows_that_were_trained_on_lately() -> None:
    shown = io.StringIO()
    with ProgressLine(Console(file=shown, width=200), "train", 3, Clock()) as line:
        for step, num_rehearsed in enumerate([0, 3, 0]):
            line.show(step, {"num_rehearsed": num_rehearsed, "num_rows": 10})
    assert [each.split("rehearsal ")[1].split()[0] for each in shown.getvalue().splitlines()] == [
        "0.0%",
        "15.0%",
        "10.0%",
    ]


def test_the_time_left_does_not_count_what_comes_once_before_the_first_step() -> None:
    shown, clock = io.StringIO(), Clock()
    line = ProgressLine(Console(file=shown, width=200), "train", 11, clock)
    clock.seconds += 1000
    line.show(0, {"step_s": 2.0})
    clock.seconds += 4
    line.show(1, {"step_s": 4.0})
    left = [row.rpartition("  ")[2] for row in shown.getvalue().splitlines()]
    assert left == ["20 s left", "27 s left"]


def test_the_time_left_of_a_job_that_goes_on_counts_its_own_steps() -> None:
    first, *_ = lines_of(100, {}, first_step=90).splitlines()
    assert first == "train  step 91/100  18 s left"


@pytest.mark.parametrize(("num_steps", "num_lines"), [(1, 1), (5, 5), (1000, 21), (10_010, 22)])
def test_a_log_file_gets_about_twenty_lines_however_many_steps_there_are(num_steps: int, num_lines: int) -> None:
    assert len(lines_of(num_steps, VALUES).splitlines()) == num_lines


def test_a_terminal_gets_one_line_that_changes() -> None:
    text = lines_of(3, VALUES, terminal=True)
    assert "step 3/3" in text
    assert "forgetting +0.012" in text
    assert "train  step" not in text


def test_rows_without_a_finite_loss_add_up() -> None:
    assert lines_of(3, {"num_nonfinite_rows": 2}).splitlines()[-1].endswith("6 not finite")
    assert "finite" not in lines_of(3, {"num_nonfinite_rows": 0, "was_skipped": False})
    skipped = lines_of(3, {"num_nonfinite_rows": 1, "was_skipped": True}).splitlines()[-1]
    assert skipped.endswith("3 not finite  3 skipped")


@pytest.mark.parametrize("title", ["train", "train a-run-with-quite-a-long-name"])
@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("more", [{}, {"num_nonfinite_rows": 3, "was_skipped": True}])
def test_a_line_fits_80_columns_and_leaves_out_what_matters_least(
    title: str, terminal: bool, more: dict[str, float | None]
) -> None:
    shown, clock = io.StringIO(), Clock()
    with ProgressLine(Console(file=shown, width=80, force_terminal=terminal), title, 30_000, clock) as line:
        for step in range(12_345, 12_348):
            clock.seconds += 200_000
            line.show(step, VALUES | more)
        line.show(29_999, VALUES | more)
    lines = re.split("[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue()).strip())
    assert max(map(len, lines)) <= 80
    assert "step 30,000/30,000" in lines[-1]
    assert ("not finite" in lines[-1]) == bool(more)
    assert more or "loss 1.500" in lines[-1]
