"""A service at several addresses, of which some fail: real sockets, and names that the test resolves."""

import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from structlog.testing import capture_logs

from replay_trainer import http_client
from replay_trainer.client import ReplayClient, RetryPolicy
from replay_trainer.errors import ServiceError, ServiceUnavailable
from tests.certificates import certificate_in
from tests.proxy import NO_FAULT, FaultyProxy
from tests.support import free_port
from tests.trainer.test_http_client import LONG_S, echoing, sized
from tests.trainer.test_network import content_of, measured

SETTINGS = {"global_batch_size": 16, "injection_ratio": "0.5", "seed": 3}
PATIENT = RetryPolicy(give_up_after_s=30.0, first_wait_s=0.01, longest_wait_s=0.05)
QUICK = RetryPolicy(give_up_after_s=0.3, first_wait_s=0.01, longest_wait_s=0.02)
NAME = "localhost"
"""A name that a service on loopback answers to."""


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "CONNECT_S", 0.2)


def resolve(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> list[str]:
    """Have NAME lead to these addresses, or to none; what is found is looked up at each call, so it may change."""
    known, look_up = list(hosts), socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **options: Any) -> list[Any]:
        if host != NAME:
            return look_up(host, port, *args, **options)
        if not known:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [found for each in known for found in look_up(each, port, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


@contextmanager
def silent(host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """A host that drops whoever tries to connect, since its queue is full."""
    with socket.socket() as listener, ExitStack() as waiting:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(2):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            with suppress(BlockingIOError):
                one.connect(("127.0.0.1" if host == "0.0.0.0" else host, listener.getsockname()[1]))
        yield f"http://{host}:{listener.getsockname()[1]}"


@contextmanager
def absent() -> Iterator[str]:
    yield f"http://127.0.0.1:{free_port()}"


@contextmanager
def resetting() -> Iterator[str]:
    """A host that takes connections and aborts them."""
    with answering(b"") as url:
        yield url


@contextmanager
def stopping() -> Iterator[str]:
    problem = b'{"type": "urn:replay-service:problem:stopping", "detail": "the service is stopping"}'
    with answering(sized(problem, b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\n")) as url:
        yield url


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A host that answers the first request of each connection so, and aborts it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(1 << 16)
                        connection.sendall(answer)
                        if not answer:
                            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(LONG_S)


@pytest.mark.parametrize("failing", [silent, absent, resetting, stopping])
def test_a_request_goes_on_at_the_next_address_and_nothing_is_lost_or_repeated(service_url: str, failing: Any) -> None:
    run = f"places-{failing.__name__}"
    with failing() as bad, ReplayClient([bad, service_url], retry=PATIENT) as client, capture_logs() as logs:
        client.ensure_run(run, "wiki", SETTINGS)
        batch = client.batch(run, 0, num_steps=4)
        result = client.report(run, measured(batch))
    assert (result.accepted, result.duplicate, result.rejected) == (32, 0, 0)
    assert [(each["event"], each["failed"], each["now"]) for each in logs] == [("service_failover", bad, service_url)]
    with ReplayClient(service_url) as direct:
        assert content_of(batch) == content_of(direct.batch(run, 0, num_steps=4))
        assert direct.stats(run)["num_reported"] == 32


def test_an_address_that_fails_after_it_was_good_is_left_and_another_one_kept(service_url: str) -> None:
    with ExitStack() as opened:
        proxies = [
            opened.enter_context(FaultyProxy(("127.0.0.1", port_of(service_url)), lambda: NO_FAULT)) for _ in "ab"
        ]
        urls = [each.base_url for each in proxies]
        client = opened.enter_context(ReplayClient(", ".join(urls), retry=PATIENT))
        client.corpus("wiki")
        assert [len(each.faults) for each in proxies] == [1, 0]
        proxies[0].__exit__()
        with capture_logs() as logs:
            for _ in range(3):
                client.corpus("wiki")
        assert [each["event"] for each in logs] == ["service_failover"]
        assert [logs[0]["failed"], logs[0]["now"]] == urls
        assert len(proxies[1].faults) == 1


def test_a_name_means_all_of_its_addresses(service_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = port_of(service_url)
    resolve(monkeypatch, "127.0.0.2", "127.0.0.3", "127.0.0.1")
    with silent("127.0.0.2", port), ReplayClient(f"http://{NAME}:{port}", retry=PATIENT) as client:
        assert client.corpus("wiki").num_samples == 80


def test_a_name_that_is_known_no_more_means_what_it_meant(service_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "IDLE_S", -1.0)
    hosts = resolve(monkeypatch, "127.0.0.1")
    with ReplayClient(f"http://{NAME}:{port_of(service_url)}", retry=PATIENT) as client:
        assert client.corpus("wiki").num_samples == 80
        hosts.clear()
        assert client.corpus("wiki").num_samples == 80


def test_a_name_that_moves_is_followed(service_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "IDLE_S", -1.0)
    hosts = resolve(monkeypatch, "127.0.0.1")
    with ReplayClient(f"http://{NAME}:{port_of(service_url)}", retry=QUICK) as client:
        client.corpus("wiki")
        hosts[:] = ["127.0.0.2"]
        with pytest.raises(ServiceUnavailable, match="ConnectionRefusedError"):
            client.corpus("wiki")


def test_all_that_was_tried_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, "127.0.0.2", "127.0.0.3")
    port = free_port()
    retry = RetryPolicy(give_up_after_s=600.0, first_contact_s=0.1)
    said = rf"http://{NAME}:{port} at 127.0.0.2: ConnectionRefused.*; http://{NAME}:{port} at 127.0.0.3: ConnectionRef"
    with ReplayClient(f"http://{NAME}:{port}", retry=retry) as client, pytest.raises(ServiceUnavailable, match=said):
        client.corpus("wiki")


def test_a_call_is_over_in_time_however_many_addresses_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "CONNECT_S", LONG_S)
    resolve(monkeypatch, *(f"127.0.1.{number}" for number in range(1, 100)))
    with silent("0.0.0.0") as url:
        client = ReplayClient(f"http://{NAME}:{port_of(url)}", retry=RetryPolicy(1.0), timeout_s=LONG_S)
        began = time.monotonic()
        with client, pytest.raises(ServiceUnavailable, match="did not answer for 1 s"):
            client.corpus("wiki")
        assert time.monotonic() - began < LONG_S


def test_a_name_that_takes_long_to_look_up_does_not_hold_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(LONG_S))
    with ReplayClient(f"http://{NAME}", retry=RetryPolicy(0.4)) as client:
        began = time.monotonic()
        with pytest.raises(ServiceUnavailable, match="could not be looked up in time"):
            client.corpus("wiki")
        assert time.monotonic() - began < LONG_S / 2
    over.set()


def test_each_address_must_show_a_certificate_for_the_name_of_its_url(tmp_path: Path) -> None:
    served, other = certificate_in(tmp_path / "one"), certificate_in(tmp_path / "other")
    contexts = []
    for files in (other, served):
        contexts.append(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
        contexts[-1].load_cert_chain(files.certificate, files.key)
    with echoing(contexts[0]) as distrusted, echoing(contexts[1]) as trusted:
        misnamed = trusted.replace("127.0.0.1", "localhost")
        for urls, said in (
            ([distrusted, trusted], "is it a replay service"),
            ([misnamed, trusted], "is it a replay service"),
            ([distrusted, misnamed], "cannot be trusted"),
        ):
            with (
                ReplayClient(urls, ca_file=served.authority, retry=PATIENT) as client,
                pytest.raises(ServiceError, match=said),
            ):
                client.close_run("any")
