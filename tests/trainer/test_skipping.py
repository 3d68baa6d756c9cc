"""Streams of runs that promise a fixed injection: the same samples, and no request for what holds nothing."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from replay_service.testing import ServiceUnderTest, replay_service
from replay_service.wire.batches import Batch
from replay_trainer.client import ReplayClient, RetryPolicy
from replay_trainer.errors import RunGone, ServiceRefused
from replay_trainer.rehearsal import RehearsalStream
from replay_trainer.reporting import LossReporter
from replay_trainer.windows import Auto
from tests.trainer.asked import Counting, take_steps, whole_job

FENCED = {"feedback": {"mode": "fenced", "lag": 8}}
SETTINGS: dict[str, Any] = {"global_batch_size": 16, "injection_ratio": "0.01", "policy": "uniform"}
PROMISED = {**SETTINGS, "injection_fixed": True}
_names = (f"skipping-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceUnderTest]:
    with replay_service() as found:
        yield found


@pytest.fixture
def counting(service: ServiceUnderTest) -> Counting:
    return Counting(service)


@pytest.fixture
def client(service: ServiceUnderTest, counting: Counting) -> Iterator[ReplayClient]:
    quick = RetryPolicy(first_wait_s=0.01, longest_wait_s=0.02)
    with service.client(transport=counting, retry=quick) as found:
        yield found


def a_run(client: ReplayClient, **changes: Any) -> str:
    run = next(_names)
    client.ensure_run(run, "pretraining", {**PROMISED, **changes})
    return run


def said(batch: Batch) -> tuple[int, int, int, list[int]]:
    """What a loop needs to know of a step, and its samples."""
    step = batch.only_step
    return step.step, step.num_rehearsed, step.rehearsed_before, batch.sample_id.tolist()


def all_said(taken: list[list[Batch]]) -> list[list[tuple[int, int, int, list[int]]]]:
    return [[said(batch) for batch in batches] for batches in taken]


@pytest.mark.parametrize(
    ("window_steps", "more", "num_asked"),
    [("auto", {}, 40), (4, {}, 400), ("auto", {**FENCED, "policy": "mix_cd"}, 408)],
)
@pytest.mark.parametrize("mode", ["replace", "add"])
def test_the_ranks_of_a_job_rehearse_the_same_rows_and_ask_less(
    client: ReplayClient, counting: Counting, window_steps: int | Auto, more: dict[str, Any], num_asked: int, mode: str
) -> None:
    settings = {**SETTINGS, **more, "injection_mode": mode}
    asking = whole_job(client, next(_names), 8, 200, window_steps, **settings)
    assert counting.num_batches >= num_asked  # what waits for reports is asked for again
    counting.statuses.clear()
    skipping = whole_job(client, next(_names), 8, 200, window_steps, **settings, injection_fixed=True)
    assert all_said(skipping) == all_said(asking)
    num_rows = sum(len(batch) for batches in skipping for batch in batches)
    assert num_rows == 32
    # The first window of a rank is asked for whatever it holds; each other one holds something.
    assert counting.num_batches <= min(num_rows + 8, num_asked)
    assert counting.num_refused == 0


def test_fenced_windows_as_long_as_the_lag_bring_the_same_rows(client: ReplayClient) -> None:
    expected = whole_job(client, next(_names), 3, 60, **SETTINGS)
    fenced = whole_job(client, next(_names), 3, 60, 8, **PROMISED, **FENCED)
    assert all_said(fenced) == all_said(expected)


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_world_size_rehearses_the_same_samples(client: ReplayClient, world_size: int) -> None:
    alone, shared = (whole_job(client, next(_names), size, 150, **PROMISED) for size in (1, world_size))
    together = [sorted(itertools.chain(*(batch.sample_id.tolist() for batch in batches))) for batches in shared]
    assert together == [sorted(batches[0].sample_id.tolist()) for batches in alone]
    assert sum(map(len, together)) == 24


def test_a_batch_that_was_never_asked_for_is_like_one_that_was(client: ReplayClient) -> None:
    ((made,),) = whole_job(client, run := next(_names), 1, 40, 2, **PROMISED)[30:31]
    came = client.batch(run, 30).of_step(30)
    assert len(made) == len(came) == 0
    (unplanned,) = made.header.steps
    version = came.only_step.policy_version
    assert unplanned.policy_version < version
    assert replace(made.header, steps=[replace(unplanned, policy_version=version)]) == came.header
    for name, array in came.columns().items():
        assert (made.columns()[name].dtype, made.columns()[name].shape) == (array.dtype, array.shape)


def test_where_nothing_is_rehearsed_nothing_is_asked_for_after_the_first_window(
    client: ReplayClient, counting: Counting
) -> None:
    taken = whole_job(client, next(_names), 2, 300, **{**PROMISED, "injection_ratio": "0"})
    assert counting.num_batches == 2
    assert all(len(batch) == 0 for batches in taken for batch in batches)


def test_a_rank_whose_turn_never_comes_asks_no_more(client: ReplayClient, counting: Counting) -> None:
    """One row in every other step always falls to the same of two ranks."""
    run = a_run(client, global_batch_size=1, injection_ratio="0.5")
    stream = RehearsalStream(client, run, 0, 2)
    assert [len(next(stream)) for _ in range(100)] == [0] * 100
    assert counting.num_batches == 1


def test_a_skip_may_be_longer_than_the_service_plans_at_once() -> None:
    with replay_service(settings={"max_steps_ahead": 10}) as service:
        counting = Counting(service)
        with service.client(transport=counting) as client:
            settings = {**PROMISED, "global_batch_size": 4}
            skipping = whole_job(client, "skips", 1, 200, 2, **settings)
            assert counting.num_refused == 8
            asking = whole_job(client, "asks", 1, 200, 2, **{**settings, "injection_fixed": False})
            assert all_said(skipping) == all_said(asking)
            assert sum(len(batch) for (batch,) in skipping) == 8


def test_steps_without_rows_do_not_count_in_how_far_a_fenced_run_plans(
    client: ReplayClient, counting: Counting
) -> None:
    run = a_run(client, **FENCED, global_batch_size=1)
    stream, reporter = RehearsalStream(client, run, 0, 1, num_steps=500), LossReporter(client, run)
    taken = take_steps([stream], reporter, 500)
    assert [step for step, (batch,) in enumerate(taken) if len(batch)] == [99, 199, 299, 399, 499]
    assert (counting.num_batches, counting.num_refused) == (6, 0)


def test_a_rank_that_runs_ahead_of_a_fenced_job_waits_for_the_others(client: ReplayClient) -> None:
    """Steps 4, 9, 14, ... hold a row, and 9 and 29 one for rank 1."""
    run = a_run(client, **FENCED, injection_ratio="0.2", global_batch_size=1)
    streams = [RehearsalStream(client, run, rank, 4, window_steps=8) for rank in range(4)]
    ahead, *behind = streams[1], streams[0], *streams[2:]
    reporter = LossReporter(client, run)
    taken = take_steps([ahead], reporter, 29)
    assert [step for step, (batch,) in enumerate(taken) if len(batch)] == [9]
    take_steps(behind, reporter, 29)
    assert [len(next(stream)) for stream in streams] == [0, 1, 0, 0]


def test_a_window_that_a_fenced_run_cannot_plan_is_refused_with_the_promise_too(client: ReplayClient) -> None:
    run = a_run(client, **FENCED, injection_ratio="0.5")
    with pytest.raises(ServiceRefused, match="at most 8 steps"):
        next(RehearsalStream(client, run, 0, 1, window_steps=20))


def test_a_job_goes_on_from_the_middle_of_a_skip_with_another_world_size(client: ReplayClient) -> None:
    whole = whole_job(client, next(_names), 1, 200, **PROMISED)
    run = a_run(client)
    reporter = LossReporter(client, run)
    first = [RehearsalStream(client, run, rank, 8, 200) for rank in range(8)]
    ids = [[len(batch) for batch in batches] for batches in take_steps(first, reporter, 120)]
    assert not any(map(sum, ids[119:]))
    state = first[0].state_dict()
    take_steps(first, reporter, 30)
    client.rewind(run, 119)
    again = [RehearsalStream(client, run, rank, 2, 200) for rank in range(2)]
    for stream in again:
        stream.load_state_dict(state)
    taken = take_steps(again, reporter, 80)
    together = [sorted(np.concatenate([batch.sample_id for batch in batches]).tolist()) for batches in taken]
    assert together == [sorted(batch.sample_id.tolist()) for (batch,) in whole[120:]]
    assert {batch.header.attempt for batches in taken for batch in batches} == {2}


def test_a_job_goes_on_although_the_service_has_planned_less_than_was_trained() -> None:
    with replay_service(settings={"max_steps_ahead": 10}) as service, service.client() as client:
        client.ensure_run("far", "pretraining", {**PROMISED, "injection_ratio": "0.0001"})
        first = RehearsalStream(client, "far", 0, 1)
        assert not any(len(next(first)) for _ in range(500))
        assert client.run("far")["next_step"] == 1
        second = RehearsalStream(client, "far", 0, 1)
        second.load_state_dict(first.state_dict())
        assert next(second).only_step.step == 500
        assert sum(len(next(second)) for _ in range(200)) == 1


def test_a_stream_goes_back_to_where_its_state_was_taken(client: ReplayClient) -> None:
    stream = RehearsalStream(client, a_run(client), 0, 2)
    for _ in range(17):
        next(stream)
    state = stream.state_dict()
    first = [said(next(stream)) for _ in range(60)]
    stream.load_state_dict(state)
    assert [said(next(stream)) for _ in range(60)] == first


def test_the_next_window_tells_that_the_run_was_closed_or_rewound(client: ReplayClient) -> None:
    """The first step with a row is the seventh."""
    closed, rewound = a_run(client), a_run(client)
    for run in (closed, rewound):
        stream = RehearsalStream(client, run, 0, 1, window_steps=1)
        next(stream)
        if run == closed:
            client.close_run(run)
        else:
            client.rewind(run, -1)
        assert [len(next(stream)) for _ in range(5)] == [0] * 5
        with pytest.raises(RunGone, match="run-closed" if run == closed else "attempt-superseded"):
            next(stream)


def test_a_rewind_is_noticed_before_anything_is_planned_for_a_job_that_is_over() -> None:
    with replay_service(settings={"max_steps_ahead": 10}) as service, service.client() as client:
        client.ensure_run("over", "pretraining", {**PROMISED, "global_batch_size": 4})
        stream = RehearsalStream(client, "over", 0, 1, window_steps=1)
        next(stream)
        client.rewind("over", -1)
        with pytest.raises(RunGone, match="attempt-superseded"):
            for _ in range(24):
                next(stream)
        assert client.run("over")["next_step"] == 0
