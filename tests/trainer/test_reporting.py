import threading
from collections.abc import Iterator

import httpx2
import numpy as np
import pytest
from structlog.testing import capture_logs

from replay_service.sampling.trained import TrainedCounts
from replay_service.testing import replay_service
from replay_trainer import reporting
from replay_trainer.client import ReplayClient
from replay_trainer.errors import ServiceRefused
from replay_trainer.reporting import SECONDS_BETWEEN_COUNTS, LossReporter, TrainedReporter
from tests.trainer.test_client import losses_of

RUN = "reported"
SETTINGS = {"global_batch_size": 8, "injection_ratio": "0.3", "policy": "uniform"}


class Held(httpx2.BaseTransport):
    """Passes requests on, but holds reports until `go` is set."""

    def __init__(self, inner: httpx2.BaseTransport) -> None:
        self._inner = inner
        self.go = threading.Event()
        self.num_reports = 0
        self.begun = threading.Event()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("/losses"):
            self.num_reports += 1
            self.begun.set()
            assert self.go.wait(30)
        return self._inner.handle_request(request)


@pytest.fixture
def client() -> Iterator[ReplayClient]:
    with replay_service(corpus="wiki") as service, service.client() as client:
        client.ensure_run(RUN, "wiki", SETTINGS)
        yield client


@pytest.fixture
def held(client: ReplayClient) -> Iterator[tuple[ReplayClient, Held]]:
    assert client.transport is not None
    transport = Held(client.transport)
    with ReplayClient(client.base_url, transport=transport) as held:
        yield held, transport


def reports_of(client: ReplayClient, num_steps: int) -> list[np.ndarray]:
    batch = client.batch(RUN, 0, num_steps=num_steps)
    return [losses_of(step, batch.of_step(step).sample_id) for step in range(num_steps)]


def test_what_was_trained_on_is_told_now_and_then_and_whenever_it_is_waited_for(client: ReplayClient) -> None:
    now = [0.0]
    losses = LossReporter(client, RUN)
    trained = TrainedReporter(losses, rank=1, next_step=2, monotonic=lambda: now[0])
    assert trained.is_due
    trained.send(4, TrainedCounts(8, 2, 80, 20))
    assert not trained.is_due
    now[0] += SECONDS_BETWEEN_COUNTS
    assert trained.is_due
    trained.send(4, TrainedCounts(8, 2, 80, 20))
    losses.flush()
    assert client.stats(RUN)["trained"]["num_rows"] == 8
    trained.send(6, TrainedCounts(16, 5, 160, 50))
    losses.flush()
    found = client.stats(RUN)["trained"]
    assert (found["next_step"], found["num_rows"], found["num_rehearsed_rows"]) == (6, 16, 5)


def test_losses_go_although_a_report_of_trained_rows_failed(client: ReplayClient) -> None:
    losses = LossReporter(client, RUN)
    (rows,) = reports_of(client, 1)
    losses.send_trained(0, 5, 5, TrainedCounts(), 0)
    with pytest.raises(ServiceRefused, match="next_step must be greater"):
        losses.flush()
    losses.send(rows)
    losses.flush()
    assert losses.num_accepted == len(rows)


def test_reports_are_durable_after_a_flush_and_counted(client: ReplayClient) -> None:
    reporter = LossReporter(client, RUN)
    for rows in reports_of(client, 4):
        reporter.send(rows)
    reporter.flush()
    assert (reporter.num_accepted, reporter.num_duplicate) == (9, 0)
    assert client.stats(RUN)["num_reported"] == 9


def test_what_comes_while_a_report_is_on_its_way_goes_with_the_next_one(held: tuple[ReplayClient, Held]) -> None:
    client, transport = held
    reporter = LossReporter(client, RUN)
    first, *others = reports_of(client, 10)
    reporter.send(first)
    assert transport.begun.wait(30)
    for rows in others:
        reporter.send(rows)
    transport.go.set()
    reporter.flush()
    assert transport.num_reports == 2
    assert reporter.num_accepted == client.stats(RUN)["num_reported"] == len(first) + sum(map(len, others))


def test_no_request_grows_without_bound(held: tuple[ReplayClient, Held], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "MOST_ROWS_AT_ONCE", 5)
    client, transport = held
    reporter, reports = LossReporter(client, RUN), reports_of(client, 10)
    reporter.send(reports[0])
    assert transport.begun.wait(30)
    for rows in reports[1:]:
        reporter.send(rows)
    transport.go.set()
    reporter.flush()
    assert [len(each) for each in reports] == [2, 2, 3, 2, 3, 2, 2, 3, 2, 3]
    assert (transport.num_reports, reporter.num_accepted) == (5, 24)


def test_a_step_that_holds_nothing_is_not_reported(held: tuple[ReplayClient, Held]) -> None:
    client, transport = held
    reporter = LossReporter(client, RUN)
    reporter.send(reports_of(client, 1)[0][:0])
    reporter.flush()
    assert transport.num_reports == 0


def test_a_refused_report_comes_up_at_the_flush_or_at_the_next_report(client: ReplayClient) -> None:
    reporter = LossReporter(client, RUN)
    reporter.send(losses_of(50, np.array([1])))
    with pytest.raises(ServiceRefused, match="no plan yet"):
        reporter.flush()
    reporter.send(losses_of(50, np.array([1])))
    while not reporter._sent[0].done():
        threading.Event().wait(0.001)
    with pytest.raises(ServiceRefused, match="no plan yet"):
        reporter.send(losses_of(50, np.array([1])))


def test_what_is_behind_a_refused_report_goes_nevertheless(
    held: tuple[ReplayClient, Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "MOST_ROWS_AT_ONCE", 1)
    client, transport = held
    reporter, reports = LossReporter(client, RUN), reports_of(client, 4)
    reporter.send(losses_of(50, np.array([1])))
    assert transport.begun.wait(30)
    for rows in reports:
        reporter.send(rows)
    reporter.send(losses_of(51, np.array([1])))
    reporter.send(reports[0])
    transport.go.set()
    for _ in range(2):
        with pytest.raises(ServiceRefused, match="no plan yet"):
            reporter.flush()
    reporter.flush()
    assert (reporter.num_accepted, reporter.num_duplicate) == (sum(map(len, reports)), len(reports[0]))


def test_reports_without_effect_are_counted_and_told_of_once(client: ReplayClient) -> None:
    reporter, rows = LossReporter(client, RUN), reports_of(client, 2)
    with capture_logs() as logs:
        for _ in range(3):
            reporter.send(rows[0])
            reporter.flush()
        rows[1]["attempt"] = client.run(RUN)["attempt"]
        client.rewind(RUN, -1)
        client.batch(RUN, 0, num_steps=2)
        reporter.send(rows[1])
        reporter.flush()
    reporter.close()
    assert (reporter.num_duplicate, reporter.num_rejected) == (2 * len(rows[0]), len(rows[1]))
    (warning,) = (each for each in logs if each["event"] == "reports_without_effect")
    assert (warning["run"], warning["num_duplicate"]) == (RUN, len(rows[0]))
