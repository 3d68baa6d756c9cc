"""Connections whose plain requests are answered beside the application."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from replay_service.gateway.middleware.beside import Reply, Waiting, Work
from replay_service.gateway.middleware.connections import ConnectionLimits, guarded_by
from tests.support import free_port


@dataclass
class Echo:
    """Sends bodies back: at once on /now, by work that waits for `may_go_on` on /later; has no answer on /other."""

    may_go_on: threading.Event = field(default_factory=threading.Event)
    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def admit(self, scope: Scope) -> Any:
        if scope["path"] == "/not-admitted":
            raise RuntimeError("nor this")
        return None if scope["path"] == "/application" else scope["path"]

    def answer(self, admitted: Any, body: bytes | bytearray) -> Reply | Work | Waiting | None:
        if admitted == "/failing":
            raise RuntimeError("nobody foresaw this")
        reply = Reply(200, b"content-length: %d\r\n" % len(body), [bytes(body)])
        if admitted == "/now":
            return reply
        return None if admitted == "/other" else Work(lambda: self._wait(reply), lambda: None)

    def _wait(self, reply: Reply) -> Reply:
        self.begun.release()
        assert self.may_go_on.wait(30)
        return reply


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        length = 0
        while True:
            message = await receive()
            length += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        await PlainTextResponse(f"application {length}")(scope, receive, send)


@dataclass
class Running:
    port: int
    echo: Echo
    server: uvicorn.Server

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as stream:
            yield stream


@pytest.fixture
def running() -> Iterator[Running]:
    echo, port = Echo(), free_port()
    http = guarded_by(ConnectionLimits(most=4, io_timeout_s=4.0), echo)
    config = uvicorn.Config(application, port=port, http=http, log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Running(port, echo, server)
    finally:
        echo.may_go_on.set()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def request(path: str, body: bytes, *fields: bytes, version: bytes = b"1.1") -> bytes:
    lines = [b"POST " + path.encode() + b" HTTP/" + version, b"host: here", b"content-length: %d" % len(body), *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def bodies(stream: socket.socket, num: int) -> list[bytes]:
    """The bodies of so many answers with the status 200, in the order in which they come."""
    found, rest = [], b""
    for _ in range(num):
        while b"\r\n\r\n" not in rest:
            rest += more(stream)
        head, _, rest = rest.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(rest) < length:
            rest += more(stream)
        found.append(rest[:length])
        rest = rest[length:]
    assert not rest
    return found


def more(stream: socket.socket) -> bytes:
    part = stream.recv(1 << 16)
    assert part, "the server closed the connection"
    return part


def test_requests_are_answered_at_once_or_when_their_work_is_done_or_by_the_application(running: Running) -> None:
    running.echo.may_go_on.set()
    with running.connected() as stream:
        for path, answer in (("/now", b"x"), ("/later", b"x"), ("/other", b"application 1")) * 2:
            stream.sendall(request(path, b"x"))
            assert bodies(stream, 1) == [answer]


def test_requests_that_come_together_are_answered_in_their_order(running: Running) -> None:
    running.echo.may_go_on.set()
    paths = ["/now", "/later", "/now", "/application", "/later", "/other", "/now"]
    with running.connected() as stream:
        stream.sendall(b"".join(request(path, b"x" * i) for i, path in enumerate(paths)))
        got = bodies(stream, len(paths))
    assert got[:2] == [b"", b"x"]
    # What came while work was done is the application's.
    assert got[2:] == [b"application %d" % i for i in range(2, len(paths))]


@pytest.mark.parametrize("num_bytes", [0, 1, 1 << 20])
@pytest.mark.parametrize("path", ["/now", "/later", "/other", "/application"])
def test_a_body_that_comes_in_pieces_is_taken_whole(running: Running, path: str, num_bytes: int) -> None:
    running.echo.may_go_on.set()
    body = bytes(range(256)) * (num_bytes // 256) + b"x" * (num_bytes % 256)
    sent = request(path, body)
    with running.connected() as stream:
        for begin in range(0, len(sent), max(1, len(sent) // 7)):
            stream.sendall(sent[begin : begin + max(1, len(sent) // 7)])
            time.sleep(0.01)
        beside = path in ("/now", "/later")
        assert bodies(stream, 1) == [body if beside else b"application %d" % num_bytes]


@pytest.mark.parametrize("sent", [request("/now", b"x", b"connection: close"), request("/now", b"x", version=b"1.0")])
def test_the_last_request_of_a_connection_is_the_applications(running: Running, sent: bytes) -> None:
    with running.connected() as stream:
        stream.sendall(sent)
        received = b""
        while part := stream.recv(1 << 16):
            received += part
    assert received.endswith(b"application 1")


@pytest.mark.parametrize("path", ["/failing", "/not-admitted"])
def test_what_nobody_foresaw_is_the_applications_to_answer(running: Running, path: str) -> None:
    with capture_logs() as logs, running.connected() as stream:
        for _ in range(2):
            stream.sendall(request(path, b"x"))
            assert bodies(stream, 1) == [b"application 1"]
    assert [each["log_level"] for each in logs] == ["error"] * 2


def test_who_asks_whether_to_send_the_body_is_told_by_the_application(running: Running) -> None:
    with running.connected() as stream:
        stream.sendall(request("/now", b"", b"expect: 100-continue").replace(b"length: 0", b"length: 1"))
        assert more(stream).startswith(b"HTTP/1.1 100")
        stream.sendall(b"x")
        assert bodies(stream, 1) == [b"application 1"]


def test_a_body_that_does_not_come_is_not_waited_for(running: Running) -> None:
    with running.connected() as stream:
        stream.sendall(request("/now", b"x")[:-1])
        assert more(stream).startswith(b"HTTP/1.1 408")
        assert stream.recv(1) == b""


def test_who_leaves_while_work_is_done_harms_nobody(running: Running) -> None:
    with running.connected() as leaving:
        leaving.sendall(request("/later", b"x"))
        assert running.echo.begun.acquire(timeout=20)
    with running.connected() as stream:
        running.echo.may_go_on.set()
        stream.sendall(request("/later", b"y"))
        assert bodies(stream, 1) == [b"y"]


def test_work_that_has_begun_is_finished_before_the_server_stops(running: Running) -> None:
    with running.connected() as stream:
        stream.sendall(request("/later", b"x"))
        assert running.echo.begun.acquire(timeout=20)
        running.server.should_exit = True
        time.sleep(0.3)
        running.echo.may_go_on.set()
        assert bodies(stream, 1) == [b"x"]
        assert stream.recv(1) == b""


def test_a_connection_too_many_has_nothing_answered_beside(running: Running) -> None:
    with running.connected(), running.connected(), running.connected(), running.connected():
        time.sleep(0.1)
        with running.connected() as stream:
            stream.sendall(request("/now", b"x"))
            assert more(stream).startswith(b"HTTP/1.1 503")


def test_who_takes_no_answers_has_no_more_made_beside(running: Running) -> None:
    """Else answers would pile up in memory; uvicorn's task waits until they are taken."""
    body, num = bytes(1 << 20), 40
    with running.connected() as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        sender = threading.Thread(target=stream.sendall, args=(request("/now", body) * num,))
        sender.start()
        got = bodies(stream, num)
        sender.join(20)
    assert got[0] == body
    assert set(got) <= {body, b"application %d" % len(body)}
