"""Requests that are repeated: which failures pass, how long a service is waited for, and the errors in the end."""

import time

import httpx2
import pytest
from structlog.testing import capture_logs

from replay_trainer.client import ReplayClient, RetryPolicy
from replay_trainer.errors import ServiceUnavailable, ServiceUnknown
from replay_trainer.retries import Request
from tests.support import free_port
from tests.trainer.flaky import QUICK, Flaky, refused


def test_failures_that_pass_go_unnoticed(service_url: str) -> None:
    busy = httpx2.Response(503, headers={"Retry-After": "0"})
    transport = Flaky([httpx2.ConnectError("refused"), busy, httpx2.ReadTimeout("slow"), httpx2.Response(502)])
    with ReplayClient(service_url, transport=transport, retry=RetryPolicy(30, 0.01, 0.02)) as client:
        assert client.corpus("wiki").num_samples == 80
    assert transport.num_requests == 5


def test_a_refusal_is_not_tried_again(service_url: str) -> None:
    transport = Flaky([])
    with ReplayClient(service_url, transport=transport) as client, pytest.raises(ServiceUnknown):
        client.corpus("never-made")
    assert transport.num_requests == 1


def test_a_service_that_stays_away_is_a_typed_error() -> None:
    with (
        ReplayClient(f"http://127.0.0.1:{free_port()}", retry=QUICK) as client,
        pytest.raises(ServiceUnavailable, match="did not answer"),
    ):
        client.corpus("wiki")


def test_a_service_that_keeps_failing_is_a_typed_error() -> None:
    transport = Flaky([httpx2.Response(503) for _ in range(10_000)])
    with (
        ReplayClient("http://127.0.0.1:1", transport=transport, retry=QUICK) as client,
        pytest.raises(ServiceUnavailable, match="kept failing"),
    ):
        client.corpus("wiki")


@pytest.mark.parametrize("host", ["127.0.0.1", "replay.invalid"])
def test_a_service_that_was_never_there_is_not_waited_for_as_one_that_is_away(host: str) -> None:
    url = f"http://{host}:{free_port()}"
    retry = RetryPolicy(give_up_after_s=600.0, first_contact_s=0.2)
    with (
        ReplayClient(url.replace("//", "//somebody:secret@"), retry=retry) as client,
        capture_logs() as logs,
        pytest.raises(ServiceUnavailable, match=f"the service at {url} did not answer for .*check the URL") as failure,
    ):
        client.corpus("wiki")
    assert "secret" not in str(failure.value)
    assert [each["event"] for each in logs] == ["service_unavailable"]


def test_a_service_that_has_answered_is_waited_for(service_url: str) -> None:
    transport = Flaky([])
    retry = RetryPolicy(30, 0.01, 0.02, first_contact_s=0.0)
    with ReplayClient(service_url, transport=transport, retry=retry) as client:
        transport.failures.append(refused())
        with pytest.raises(ServiceUnavailable):
            client.corpus("wiki")
        client.corpus("wiki")
        transport.failures += [refused() for _ in range(3)]
        client.corpus("wiki")
        assert not transport.failures


class Deadlines(httpx2.BaseTransport):
    """Never answers in time, and notes how long it was given."""

    def __init__(self) -> None:
        self.given_s: list[float] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.given_s.append(request.extensions["deadline"] - time.monotonic())
        raise httpx2.ReadTimeout("nothing came")


@pytest.mark.parametrize(("urls", "expected"), [("http://a", [60, 60, 60]), ("http://a,http://b", [15, 30, 60])])
def test_a_host_that_hangs_is_left_sooner_where_there_is_another(urls: str, expected: list[int]) -> None:
    transport = Deadlines()
    policy = RetryPolicy(give_up_after_s=600.0, first_wait_s=0.0, longest_wait_s=0.0)
    with ReplayClient(urls, retry=policy, transport=transport) as client:
        requests = client._requests
        for number, most in enumerate(expected):
            with pytest.raises(httpx2.ReadTimeout):
                requests.attempt(Request("GET", "/", {}, b""), time.monotonic() + requests.patience_s(number, 60.0))
            assert most - 1 < transport.given_s[number] <= most
