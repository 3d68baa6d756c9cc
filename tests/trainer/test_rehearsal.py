from collections.abc import Iterator
from itertools import chain

import numpy as np
import pytest

from replay_service.testing import ServiceUnderTest, replay_service
from replay_trainer.client import ReplayClient
from replay_trainer.errors import InvalidTraining, RunGone
from replay_trainer.rehearsal import RehearsalStream
from replay_trainer.reporting import LossReporter
from tests.trainer.test_client import losses_of

SETTINGS = {"global_batch_size": 8, "injection_ratio": "0.3", "policy": "uniform"}


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceUnderTest]:
    with replay_service(corpus="wiki") as service:
        yield service


@pytest.fixture
def client(service: ServiceUnderTest, request: pytest.FixtureRequest) -> Iterator[ReplayClient]:
    with service.client() as client:
        client.ensure_run(run_name(request), "wiki", SETTINGS)
        yield client


@pytest.fixture
def run(request: pytest.FixtureRequest) -> str:
    return run_name(request)


def run_name(request: pytest.FixtureRequest) -> str:
    return f"stream-{abs(hash(request.node.nodeid))}"


def ids(stream: RehearsalStream, num_steps: int) -> list[list[int]]:
    return [next(stream).sample_id.tolist() for _ in range(num_steps)]


def test_a_stream_gives_every_step_its_plan(client: ReplayClient, run: str) -> None:
    stream = RehearsalStream(client, run, 0, 1, num_steps=10, window_steps=4)
    batches = list(stream)
    assert [len(batch) for batch in batches] == [2, 2, 3, 2, 3, 2, 2, 3, 2, 3]
    whole = client.batch(run, 0, num_steps=10)
    assert np.concatenate([batch.sample_id for batch in batches]).tolist() == whole.sample_id.tolist()


def test_a_stream_asks_for_no_step_beyond_its_end(client: ReplayClient, run: str) -> None:
    list(RehearsalStream(client, run, 0, 1, num_steps=10, window_steps=4))
    assert client.stats(run)["next_step"] == 10


@pytest.mark.parametrize(("feedback", "window"), [({"mode": "fenced", "lag": 6}, 3), ({"mode": "latest"}, 21)])
def test_a_stream_chooses_windows_that_never_wait_for_their_own_reports(
    client: ReplayClient, run: str, feedback: dict[str, object], window: int
) -> None:
    client.ensure_run(f"{run}-auto", "wiki", {**SETTINGS, "feedback": feedback, "half_life_steps": 672})
    stream, reporter = RehearsalStream(client, f"{run}-auto", 0, 1), LossReporter(client, f"{run}-auto")
    planned_until = []
    for step in range(40):
        batch = next(stream)
        assert batch.only_step.step == step
        planned_until.append(client.run(f"{run}-auto")["next_step"])
        reporter.send(losses_of(step, batch.sample_id))
    reporter.flush()
    assert client.stats(f"{run}-auto")["num_reported"] == 96
    assert all(step < end <= step + 2 * window for step, end in enumerate(planned_until))
    assert len(set(planned_until)) <= 40 / window + 3


def test_a_stream_takes_no_more_steps_than_the_service_gives_at_once() -> None:
    with replay_service(settings={"max_steps_per_request": 2}) as service, service.client() as client:
        client.ensure_run("narrow", service.corpus, SETTINGS)
        assert len(list(RehearsalStream(client, "narrow", 0, 1, num_steps=9))) == 9


def test_a_change_of_the_ratio_is_followed_exactly_however_long_the_windows(client: ReplayClient, run: str) -> None:
    client.ensure_run(f"{run}-thin", "wiki", {**SETTINGS, "injection_ratio": "0.001"})
    stream = RehearsalStream(client, f"{run}-thin", 0, 1, num_steps=200)
    taken = []
    for step, batch in enumerate(stream):
        if step == 3:
            client.configure(f"{run}-thin", injection_ratio="0.5")
        assert batch.only_step.rehearsed_before == sum(taken)
        assert batch.only_step.num_rehearsed == len(batch)
        taken.append(len(batch))
    assert taken[:3] == [0, 0, 0]
    assert taken[-3:] == [4, 4, 4]
    assert sum(taken) == client.stats(f"{run}-thin")["rows_rehearsed"]


def test_a_run_that_is_closed_is_gone(client: ReplayClient, run: str) -> None:
    stream = RehearsalStream(client, run, 0, 1, window_steps=1)
    assert len(next(stream)) == 2
    client.close_run(run)
    with pytest.raises(RunGone, match="run-closed"):
        ids(stream, 3)


def test_a_run_that_was_rewound_by_somebody_else_is_gone(client: ReplayClient, run: str) -> None:
    stream = RehearsalStream(client, run, 0, 1, window_steps=2)
    state = stream.state_dict()
    first = ids(stream, 4)
    client.rewind(run, 0)
    with pytest.raises(RunGone, match="attempt-superseded"):
        ids(stream, 5)
    stream.load_state_dict(state)
    assert ids(stream, 4) == first


def test_the_ranks_of_any_world_size_share_the_same_plan(client: ReplayClient, run: str) -> None:
    alone = ids(RehearsalStream(client, run, 0, 1), 8)
    for world_size in (2, 3):
        ranks = [ids(RehearsalStream(client, run, rank, world_size), 8) for rank in range(world_size)]
        together = [sorted(chain(*step)) for step in zip(*ranks, strict=True)]
        assert together == [sorted(step) for step in alone]


def test_a_resumed_stream_goes_on_with_the_same_samples(client: ReplayClient, run: str) -> None:
    whole = ids(RehearsalStream(client, run, 0, 1, window_steps=3), 12)
    first = RehearsalStream(client, run, 0, 1, window_steps=3)
    ids(first, 5)
    second = RehearsalStream(client, run, 0, 1, window_steps=5)
    second.load_state_dict(first.state_dict())
    assert ids(second, 7) == whole[5:]


def test_a_stream_goes_back_to_where_its_state_was_taken(client: ReplayClient, run: str) -> None:
    stream = RehearsalStream(client, run, 0, 1)
    state = stream.state_dict()
    first = ids(stream, 6)
    stream.load_state_dict(state)
    assert ids(stream, 6) == first


def test_a_state_of_another_run_or_version_is_refused(client: ReplayClient, run: str) -> None:
    stream = RehearsalStream(client, run, 0, 1)
    with pytest.raises(InvalidTraining, match="of run 'other'"):
        stream.load_state_dict({"version": 1, "run": "other", "next_step": 3})
    with pytest.raises(InvalidTraining, match="version 9"):
        stream.load_state_dict({"version": 9})
    with pytest.raises(InvalidTraining, match="window_steps"):
        RehearsalStream(client, run, 0, 1, window_steps=0)
