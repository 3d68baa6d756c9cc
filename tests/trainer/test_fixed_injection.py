"""What a client knows of steps that it has not asked for is what their plans say."""

from dataclasses import replace
from fractions import Fraction

import hypothesis.strategies as st
from hypothesis import given, settings

from replay_service.sampling.events import Planned
from replay_service.sampling.injection import rank_positions
from replay_trainer.fixed_injection import FixedInjection
from tests.sampling.worlds import initial_state, planned, plans_of
from tests.wire.test_batches import make_batch

ratios = st.integers(0, 10**6 - 1).map(lambda millionths: f"{millionths / 10**6:.6f}") | st.sampled_from(
    ["0", "0.01", "0.05", "0.125", "1e-5"]
)


def foreseen(config: dict[str, object], rank: int = 0, world_size: int = 1) -> FixedInjection:
    found = FixedInjection.of_run({"config": {**config, "injection_fixed": True}}, rank, world_size)
    assert found is not None
    return found


def holds(plan: Planned, rank: int, world_size: int) -> bool:
    return len(rank_positions(len(plan.rows), plan.step, rank, world_size)) > 0


@given(ratios, st.sampled_from(["replace", "add"]), st.integers(1, 64), st.integers(1, 80), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_every_step_holds_as_many_rows_as_its_plan(
    ratio: str, mode: str, batch: int, num_steps: int, planned_before: int
) -> None:
    if mode == "add" and float(ratio) > 0.9:
        ratio = "0.9"
    config: dict[str, object] = {"global_batch_size": batch, "injection_ratio": ratio, "injection_mode": mode}
    state = initial_state([500, 300], injection_fixed=True, **config)
    first = planned(state, planned_before - 1)
    plans = [*first, *plans_of(state, planned_before + num_steps)]
    for world_size in (1, 2, 3, 8):
        for rank in range(world_size):
            known = foreseen(config, rank, world_size)
            assert [known.holds(plan.step) for plan in plans] == [holds(plan, rank, world_size) for plan in plans]
    known = foreseen(config)
    counts = [known.counts(plan.step) for plan in plans]
    assert counts == [(len(plan.rows), plan.rehearsed_before) for plan in plans]


def test_a_step_that_was_not_asked_for_has_the_policy_version_of_the_batch_before() -> None:
    header = make_batch(3).header
    steps = [replace(each, policy_version=7) for each in header.steps]
    latest = replace(make_batch(3), header=replace(header, steps=steps))
    empty = foreseen({"injection_ratio": "0.125", "injection_mode": "replace", "global_batch_size": 4}).empty(4, latest)
    assert len(empty) == 0
    assert (empty.only_step.policy_version, empty.header.attempt) == (7, header.attempt)


@given(st.fractions(0, 3, max_denominator=50), st.integers(1, 9), st.integers(0, 10**9), st.integers(1, 60), st.data())
def test_a_window_goes_from_a_step_that_holds_something_to_the_last_one_that_does(
    rows_a_step: Fraction, world_size: int, first: int, num_steps: int, data: st.DataObject
) -> None:
    known = FixedInjection(rows_a_step, data.draw(st.integers(0, world_size - 1)), world_size)
    steps = range(first, first + num_steps)
    window = known.window(steps)
    if known.holds(first):
        assert window.start == first and known.holds(window[-1])
        assert not any(known.holds(step) for step in range(window.stop, steps.stop))
    else:
        assert not window


def test_nothing_is_known_of_a_run_that_makes_no_promise() -> None:
    config: dict[str, object] = {"global_batch_size": 8, "injection_ratio": "0.1", "injection_mode": "replace"}
    assert FixedInjection.of_run({"config": config}, 0, 1) is None
    assert FixedInjection.of_run({"config": {**config, "injection_fixed": False}}, 0, 1) is None
