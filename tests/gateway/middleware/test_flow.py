"""Requests that come too slowly, readers that do not read, and more of either than can be served at once."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from replay_service.gateway.middleware.access import OPEN_PATHS
from replay_service.wire.losses import encode_losses
from replay_service.wire.protocol import ARROW_STREAM
from tests.gateway.worlds import all_of, assert_problem, batch_of, client_on, create_run, losses_of
from tests.support import make_corpus, running_service

SOON_S = 0.3
LATE_S = 60.0


@contextmanager
def service(root: Path, **settings: float) -> Iterator[httpx2.Client]:
    """A client of a real server with these settings."""
    config = root / "replay.toml"
    config.write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
    with (
        running_service(root, options=["--config", config]) as (base_url, _),
        httpx2.Client(base_url=base_url, timeout=60.0) as client,
    ):
        yield client


def connection(client: httpx2.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=30)


def head(path: str, num_bytes: int, content_type: str = ARROW_STREAM) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Content-Type: {content_type}",
        f"Content-Length: {num_bytes}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def all_that_comes(stream: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    received = b""
    with suppress(ConnectionResetError):
        while part := stream.recv(1 << 16):
            received += part
    return received


def as_problem(received: bytes) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and problem document of a raw answer."""
    first, _, rest = received.partition(b"\r\n")
    headers, _, body = rest.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(": ", 1) for line in headers.decode().splitlines())
    return int(first.split()[1]), fields, json.loads(body)


def test_a_body_that_does_not_come_to_its_end_is_cut_off_with_a_problem_and_changes_nothing(root: Path) -> None:
    with service(root, io_timeout_s=SOON_S) as client:
        create_run(client)
        body = bytes(encode_losses(losses_of(batch_of(client, 0, 5))))
        before = all_of(client)
        for path in ("/v1/runs/tune/losses", "/v1/runs/tune/batches", "/v1/runs"):
            with connection(client) as stream:
                stream.sendall(head(path, len(body), "application/json" if path == "/v1/runs" else ARROW_STREAM))
                stream.sendall(body[: len(body) // 2])
                status, fields, problem = as_problem(all_that_comes(stream))
            if path.endswith("batches"):  # what is no JSON is refused before the body is read
                assert status in (408, 422)
                continue
            assert (status, problem["type"].rpartition(":")[2]) == (408, "request-too-slow")
            assert (fields["connection"], fields["cache-control"]) == ("close", "no-store")
        assert all_of(client) == before
    levels = {json.loads(line)["level"] for line in (root / "serve.log").read_text().splitlines()}
    assert "error" not in levels


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GET /v1/runs HTT", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"])
def test_a_connection_that_sends_no_whole_request_is_closed(root: Path, sent: bytes) -> None:
    with service(root, io_timeout_s=SOON_S) as client, connection(client) as stream:
        stream.sendall(sent)
        assert all_that_comes(stream) == b""
        assert client.get("/readyz").status_code == 200


def test_a_request_that_comes_a_byte_at_a_time_is_cut_off_too(root: Path) -> None:
    with service(root, io_timeout_s=SOON_S) as client, connection(client) as stream:
        with pytest.raises(OSError):
            for _ in range(600):
                stream.sendall(b"x")
                time.sleep(0.02)
        assert client.get("/readyz").status_code == 200


def test_a_reader_that_does_not_read_a_large_answer_is_cut_off(root: Path) -> None:
    make_corpus(root / "corpora", "long", seq_len=4096)
    with service(root, io_timeout_s=SOON_S) as client:
        create_run(client, corpus="long", global_batch_size=80, injection_ratio="1")
        whole = client.post("/v1/runs/tune/batches", json={"step": 0, "num_steps": 32}).content
        with connection(client) as stream:
            body = b'{"step": 0, "num_steps": 32}'
            stream.sendall(head("/v1/runs/tune/batches", len(body), "application/json") + body)
            await_log(root, "cut off a reader that does not read")
            assert 0 < len(all_that_comes(stream)) < len(whole)
        assert client.get("/readyz").status_code == 200


def await_log(root: Path, event: str) -> None:
    for _ in range(300):
        if event in (root / "serve.log").read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"the log does not say {event!r}")


def test_more_requests_than_the_limit_are_told_to_come_again(root: Path) -> None:
    with service(root, io_timeout_s=LATE_S, max_concurrent_requests=1) as client:
        create_run(client)
        rows = losses_of(batch_of(client, 0, 5))
        body = bytes(encode_losses(rows))
        with connection(client) as stream:
            expecting = head("/v1/runs/tune/losses", len(body))
            stream.sendall(expecting.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
            assert stream.recv(1 << 16).startswith(b"HTTP/1.1 100"), "the request is in progress"
            refused = client.post("/v1/runs/tune/batches", json={"step": 5})
            assert_problem(refused, 503, "overloaded")
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["cache-control"] == "no-store"
            for path in OPEN_PATHS:
                assert client.get(path).status_code == 200
            stream.sendall(body)
            assert stream.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert client.get("/v1/runs").status_code == 200


def await_status(client: httpx2.Client, path: str, status: int) -> None:
    for _ in range(100):
        if client.get(path).status_code == status:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} does not answer {status}")


def test_more_connections_than_the_limit_are_told_to_come_again(root: Path) -> None:
    with service(root, io_timeout_s=LATE_S, max_connections=2) as client:
        assert client.get("/v1/runs").status_code == 200
        with connection(client), connection(client), httpx2.Client(base_url=client.base_url) as another:
            refused = another.get("/v1/runs")
            assert_problem(refused, 503, "overloaded")
            assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")
            assert another.get("/healthz").status_code == 200
        with httpx2.Client(base_url=client.base_url) as another:
            await_status(another, "/v1/runs", 200)


def test_a_service_that_is_to_stop_is_not_ready_but_lives_and_answers(root: Path) -> None:
    with client_on(root) as client:
        assert isinstance(client, TestClient)
        client.app.state.is_stopping = True  # type: ignore[attr-defined]
        assert_problem(client.get("/readyz"), 503, "stopping")
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/runs").status_code == 200
