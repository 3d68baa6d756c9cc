from fractions import Fraction

import hypothesis.strategies as st
from hypothesis import given

from replay_trainer.windows import LEAST_STEPS, MOST_BYTES, MOST_STEPS, USEFUL_ROWS, WindowRule

ROW_BYTES = 2_300


def rule(
    global_batch_size: int = 64, world_size: int = 1, horizon_steps: float = 500.0, most_steps: int = 1024
) -> WindowRule:
    return WindowRule(global_batch_size, world_size, horizon_steps, most_steps)


def a_run(mode: str, lag: int, max_window_steps: int) -> dict[str, object]:
    feedback = {"mode": mode, "lag": lag}
    config = {"global_batch_size": 64, "half_life_steps": 1e9, "feedback": feedback}
    return {"config": config, "max_window_steps": max_window_steps}


def test_a_small_injection_ratio_does_not_cost_a_request_a_step() -> None:
    assert rule().num_steps(Fraction(1, 100), ROW_BYTES) == 15
    assert rule(world_size=4).num_steps(Fraction(1, 100), ROW_BYTES) == 15


def test_many_rows_a_step_need_few_steps() -> None:
    assert rule().num_steps(Fraction(1, 10), ROW_BYTES) == 10
    assert rule().num_steps(Fraction(1, 2), ROW_BYTES) == LEAST_STEPS


def test_a_rank_that_seldom_rehearses_asks_for_as_many_steps_as_hold_a_row() -> None:
    assert rule(world_size=16).num_steps(Fraction(1, 100), ROW_BYTES) == 25
    assert rule().num_steps(Fraction(0), ROW_BYTES) == MOST_STEPS


def test_reports_that_fade_fast_make_windows_short() -> None:
    assert rule(horizon_steps=64.0).num_steps(Fraction(1, 10), ROW_BYTES) == 2


def test_a_short_job_acts_on_fresh_reports() -> None:
    run = a_run("latest", 8, 1024)
    assert WindowRule.of_run(run, 1, 32).num_steps(Fraction(1, 10), ROW_BYTES) == 1
    assert WindowRule.of_run(run, 1, 320).num_steps(Fraction(1, 20), ROW_BYTES) == 10
    assert WindowRule.of_run(run, 1, None).num_steps(Fraction(1, 20), ROW_BYTES) == 20


@given(st.integers(1, 64), st.integers(1, 1024))
def test_a_fenced_run_can_plan_the_next_window_when_the_one_before_begins(lag: int, max_window_steps: int) -> None:
    steps = WindowRule.of_run(a_run("fenced", lag, max_window_steps), 1, None).num_steps(Fraction(1, 1000), ROW_BYTES)
    first = 100
    reported = first - 1
    last_of_the_next = first + 2 * steps - 1
    assert steps <= max_window_steps
    assert steps == 1 or last_of_the_next - lag <= reported


@given(
    ratio=st.fractions(0, 1),
    row_bytes=st.integers(1, 1 << 24),
    world_size=st.integers(1, 512),
    horizon_steps=st.floats(1e-3, 1e12),
    most_steps=st.integers(1, 4096),
)
def test_a_window_keeps_every_bound(
    ratio: Fraction, row_bytes: int, world_size: int, horizon_steps: float, most_steps: int
) -> None:
    asked = rule(512, world_size, horizon_steps, most_steps)
    steps = asked.num_steps(ratio, row_bytes)
    rows = float(ratio * 512 / world_size)
    assert 1 <= steps <= min(MOST_STEPS, most_steps)
    if steps > 1:
        assert steps * rows * row_bytes <= MOST_BYTES * (1 + 1e-9)
        assert steps <= max(horizon_steps / 32, 1 / rows if rows else steps) * (1 + 1e-9)
        assert steps <= max(LEAST_STEPS, USEFUL_ROWS / rows if rows else steps) * (1 + 1e-9)
