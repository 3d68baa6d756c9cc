"""HTTP over sockets: servers that answer as no service does, and proxies."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import numpy as np
import pytest

from replay_service.wire.protocol import CHECKSUM_HEADER
from replay_trainer import http_client, http_connection
from replay_trainer.errors import ServiceError
from replay_trainer.http_client import HttpClient
from replay_trainer.http_response import HttpResponse
from replay_trainer.proxies import NamedProxy
from replay_trainer.routes import Route
from replay_trainer.transport import trusted_by
from tests.certificates import certificate_in

OK = b"HTTP/1.1 200 OK\r\n"
LONG_S = 20.0


@dataclass(slots=True)
class Peer:
    """Takes connections one by one, reads a request of each line of its script, and answers with its pieces."""

    url: str
    requests: list[bytes] = field(default_factory=list)
    num_connections: int = 0


@contextmanager
def peer(*script: list[list[bytes]], stays_s: float = 0.0) -> Iterator[Peer]:
    """A peer whose script has, of each connection, of each request, the pieces of the answer.

    It closes a connection after the last answer, but not before `stays_s` have passed or the test is over.
    """
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = Peer(f"http://127.0.0.1:{listener.getsockname()[1]}")

        def serve() -> None:
            for answers in script:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    found.num_connections += 1
                    for pieces in answers:
                        found.requests.append(request_from(connection))
                        with suppress(OSError):
                            for piece in pieces:
                                connection.sendall(piece)
                                over.wait(0.001)
                    over.wait(stays_s)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield found
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(LONG_S)


def request_from(connection: socket.socket) -> bytes:
    request = b""
    while b"\r\n\r\n" not in request:
        data = connection.recv(1 << 16)
        if not data:
            break
        request += data
    return request


def ask(way: HttpClient, path: str = "/v1/runs", body: bytes = b"", limit_s: float = LONG_S) -> HttpResponse:
    return way.ask("POST", path, {}, body, time.monotonic() + limit_s)


def way_to(url: str, headers: dict[str, str] | None = None) -> closing[HttpClient]:
    return closing(HttpClient([Route.to(url, headers or {}, trusted_by(None))]))


def sized(body: bytes, status: bytes = OK) -> bytes:
    return status + b"Content-Length: %d\r\n\r\n" % len(body) + body


BODY = np.random.default_rng(0).bytes(20_000)
WHOLE = sized(BODY)
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n4e20\r\n" + BODY + b"\r\n0\r\n\r\n"


@pytest.mark.parametrize("cut", [1, 16, 40, 41, 42, 300, 4096, 9000, len(WHOLE) - 1])
@pytest.mark.parametrize("answer", [WHOLE, CHUNKED, OK + b"\r\n" + BODY, b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE])
def test_an_answer_comes_whole_however_it_is_framed_and_cut(answer: bytes, cut: int) -> None:
    with peer([[answer[:cut], answer[cut:]]]) as other, way_to(other.url) as way:
        received = ask(way)
    assert received.status == 200
    assert bytes(received.content) == BODY


def test_what_has_come_cannot_be_written_to() -> None:
    with peer([[WHOLE]]) as other, way_to(other.url) as way:
        content = ask(way).content
    assert memoryview(content).readonly
    assert not np.frombuffer(content, dtype=np.uint8).flags.writeable


@pytest.mark.parametrize("status", [b"HTTP/1.1 204 No Content\r\n\r\n", sized(b"")])
def test_an_answer_may_have_no_body(status: bytes) -> None:
    with peer([[status]]) as other, way_to(other.url) as way:
        assert ask(way).content == b""


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "closed before the end"),
        (WHOLE[:30], "closed before the end"),
        (WHOLE[:-1], "closed within an answer"),
        (CHUNKED[:-1], "closed before the end"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "HttpParserError"),
        (OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", "Content-Length"),
        (OK + b"Content-Length: -3\r\n\r\n", "Content-Length"),
        (OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc", "Content-Length"),
        (OK + b"Content-Length: %d\r\n\r\n" % (1 << 50), "more than"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", "HttpParserError"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "Upgrade"),
        (OK + b"X: " + b"a" * (1 << 17), "the head of an answer"),
        (sized(b"abc") + WHOLE, "Error"),
    ],
)
def test_what_is_no_answer_is_an_error_of_the_network(answer: bytes, said: str) -> None:
    with peer([[answer]]) as other, way_to(other.url) as way, pytest.raises(httpx2.TransportError, match=said):
        ask(way)


def test_an_answer_without_a_stated_length_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "MOST_ANSWER_BYTES", 10_000)
    for answer in (WHOLE, CHUNKED, OK + b"\r\n" + BODY):
        with (
            peer([[answer]]) as other,
            way_to(other.url) as way,
            pytest.raises(httpx2.TransportError, match="more than 10000 bytes"),
        ):
            ask(way)


def test_a_connection_serves_one_request_after_the_other() -> None:
    with peer([[sized(b"one")], [sized(b"two")], [CHUNKED]]) as other, way_to(other.url) as way:
        assert [bytes(ask(way).content) for _ in range(3)] == [b"one", b"two", BODY]
        assert other.num_connections == 1


def closes(_: pytest.MonkeyPatch) -> bytes:
    return sized(b"one", OK + b"Connection: close\r\n")


def closes_without_a_word(_: pytest.MonkeyPatch) -> bytes:
    return sized(b"one")


def says_more(_: pytest.MonkeyPatch) -> bytes:
    return sized(b"one" * 2000) + b"more"


def is_left_idle(monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.setattr(http_client, "IDLE_S", -1.0)
    return sized(b"one")


@pytest.mark.parametrize("first", [closes, closes_without_a_word, says_more, is_left_idle])
def test_a_connection_that_is_over_is_not_used_again(
    first: Callable[[pytest.MonkeyPatch], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with peer([[first(monkeypatch)]], [[sized(b"two")]]) as other, way_to(other.url) as way:
        assert bytes(ask(way).content).startswith(b"one")
        time.sleep(0.05)
        assert ask(way).content == b"two"
        assert other.num_connections == 2


def test_a_request_says_where_it_goes_and_for_whom() -> None:
    with peer([[sized(b"")]]) as other:
        host = other.url.partition("://")[2]
        with way_to(f"http://some%40body:sec%3Aret@{host}/replay/", {"User-Agent": "tests"}) as way:
            answer = way.ask("POST", "/v1/runs/a b?\r\nX: y", {"Accept": "*/*"}, b"body", time.monotonic() + LONG_S)
    line, *lines = other.requests[0].partition(b"\r\n\r\n")[0].decode().split("\r\n")
    assert line == "POST /replay/v1/runs/a%20b%3F%0D%0AX%3A%20y HTTP/1.1"
    assert sorted(lines) == [
        "Accept: */*",
        "Authorization: Basic c29tZUBib2R5OnNlYzpyZXQ=",
        "Content-Length: 4",
        f"Host: {host}",
        "User-Agent: tests",
    ]
    assert other.requests[0].endswith(b"\r\n\r\nbody")
    assert "sec" not in answer.url


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8400",
        "ftp://localhost",
        "http://",
        "127.0.0.1",
        "http://a:84oo",
        "http://a?b",
        "http://a b",
        "http://a:99999",
    ],
)
def test_a_url_that_is_of_no_service_is_refused(url: str) -> None:
    with pytest.raises(ServiceError, match="no URL of a service"):
        way_to(url)


@pytest.mark.parametrize("pieces", [[], [OK], [WHOLE[:-1]], [CHUNKED[:-1]], [bytes([byte]) for byte in WHOLE]])
def test_a_request_is_over_at_its_deadline(pieces: list[bytes]) -> None:
    with peer([pieces], stays_s=LONG_S) as other, way_to(other.url) as way:
        began = time.monotonic()
        with pytest.raises(httpx2.TransportError, match=r"timed out|deadline"):
            ask(way, limit_s=0.2)
        assert time.monotonic() - began < LONG_S / 2


def test_a_peer_that_reads_nothing_keeps_no_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with way_to(url) as way, pytest.raises(httpx2.TransportError, match=r"timed out|deadline"):
            ask(way, body=bytes(64 << 20), limit_s=0.3)


def test_threads_share_the_connections_and_each_gets_its_answer() -> None:
    found = dict[int, list[bytes]]()
    with echoing() as url, way_to(url) as way:

        def go(number: int) -> None:
            found[number] = [bytes(ask(way, body=b"%d:%d" % (number, i)).content) for i in range(10)]

        threads = [threading.Thread(target=go, args=(number,)) for number in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert found == {number: [b"%d:%d" % (number, i) for i in range(10)] for number in range(8)}


class Echo(BaseHTTPRequestHandler):
    """Answers with the body of the request."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.wfile.write(sized(body, OK + f"Retry-After: {self.client_address[1]}\r\n".encode()))

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def echoing(trusted: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server of `Echo`, which names the client's port in a header: its URL. With a context it speaks TLS."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        if trusted is not None:
            server.socket = trusted.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"{'http' if trusted is None else 'https'}://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_over_tls_large_bodies_go_and_come_on_one_connection(tmp_path: Path) -> None:
    files = certificate_in(tmp_path / "tls")
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(files.certificate, files.key)
    body = np.random.default_rng(1).bytes(1 << 20)
    with echoing(serving) as url, closing(HttpClient([Route.to(url, {}, files.trusted)])) as way:
        answers = [ask(way, body=body[:size]) for size in (1 << 20, 0, 70_000)]
    assert [bytes(each.content) for each in answers] == [body, b"", body[:70_000]]
    assert len({each.headers["retry-after"] for each in answers}) == 1


def test_a_refusal_that_comes_before_the_request_is_read_is_heard() -> None:
    with peer([[sized(b"too large", b"HTTP/1.1 413 Content Too Large\r\n")]]) as other, way_to(other.url) as way:
        answer = ask(way, body=bytes(64 << 20))
    assert (answer.status, bytes(answer.content)) == (413, b"too large")


def test_the_headers_that_matter_are_found_however_they_are_written() -> None:
    head = OK + f"{CHECKSUM_HEADER.upper()}: 12\r\nRETRY-AFTER: 3\r\nServer: x\r\nContent-length: 0\r\n\r\n".encode()
    with peer([[head]]) as other, way_to(other.url) as way:
        headers = ask(way).headers
    assert (headers[CHECKSUM_HEADER.lower()], headers["retry-after"]) == ("12", "3")


@dataclass(slots=True)
class ForwardProxy:
    """An HTTP proxy: it asks the server that a URL names, or opens a tunnel; the heads of the requests that it got."""

    url: str
    heads: list[bytes] = field(default_factory=list)


@contextmanager
def forward_proxy(refusal: bytes = b"", trusted: ssl.SSLContext | None = None) -> Iterator[ForwardProxy]:
    """A proxy that passes on what comes; with a refusal it answers that. With a context it speaks TLS itself."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as opened:
        scheme = "http" if trusted is None else "https"
        found = ForwardProxy(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}")

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    if trusted is not None:
                        connection = trusted.wrap_socket(connection, server_side=True)
                    opened.enter_context(connection)
                    threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection: socket.socket) -> None:
            with suppress(OSError):
                request = request_from(connection)
                found.heads.append(request)
                if refusal:
                    connection.sendall(refusal)
                    return
                method, target, _ = request.split(b" ", 2)
                there = target if method == b"CONNECT" else target.split(b"/")[2]
                host, _, port = there.decode().rpartition(":")
                with socket.create_connection((host, int(port))) as server:
                    if method == b"CONNECT":
                        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    else:
                        server.sendall(request)
                    threading.Thread(target=pass_on, args=(connection, server), daemon=True).start()
                    pass_on(server, connection)

        def pass_on(source: socket.socket, sink: socket.socket) -> None:
            with suppress(OSError):
                while data := source.recv(1 << 16):
                    sink.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield found
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(LONG_S)


def serving_with(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of a server with a certificate and of a client that trusts it."""
    files = certificate_in(folder)
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(files.certificate, files.key)
    return serving, files.trusted


@pytest.mark.parametrize("auth", [None, ("some body", "s:ecret")])
@pytest.mark.parametrize("proxy_speaks_tls", [False, True])
def test_a_proxy_is_asked_by_the_whole_url(
    tmp_path: Path, proxy_speaks_tls: bool, auth: tuple[str, str] | None
) -> None:
    serving, trusted = serving_with(tmp_path / "tls")
    with (
        echoing() as url,
        forward_proxy(trusted=serving if proxy_speaks_tls else None) as proxy,
        closing(HttpClient([Route.to(f"{url}/under", {}, trusted, NamedProxy(proxy.url, auth))])) as way,
    ):
        answers = [ask(way, "/v1/a b", body) for body in (b"one", b"two")]
    assert [bytes(each.content) for each in answers] == [b"one", b"two"]
    assert answers[0].url == f"{url}/under/v1/a b (by way of the proxy {proxy.url}, which the environment names)"
    (head,) = proxy.heads
    assert head.startswith(f"POST {url}/under/v1/a%20b HTTP/1.1\r\n".encode())
    assert (b"Proxy-Authorization: Basic c29tZSBib2R5OnM6ZWNyZXQ=\r\n" in head) == (auth is not None)


@pytest.mark.parametrize("auth", [None, ("somebody", "secret")])
def test_a_service_over_https_is_asked_through_a_tunnel_that_the_proxy_cannot_read(
    tmp_path: Path, auth: tuple[str, str] | None
) -> None:
    serving, trusted = serving_with(tmp_path / "tls")
    with (
        echoing(serving) as url,
        forward_proxy() as proxy,
        closing(HttpClient([Route.to(url, {"X-Token": "hidden"}, trusted, NamedProxy(proxy.url, auth))])) as way,
    ):
        answers = [ask(way, body=body) for body in (b"one", bytes(300_000))]
    assert [len(each.content) for each in answers] == [3, 300_000]
    (head,) = proxy.heads
    assert head.startswith(f"CONNECT {url.partition('//')[2]} HTTP/1.1\r\n".encode())
    assert (b"Proxy-Authorization: Basic " in head) == (auth is not None)
    assert b"hidden" not in head


def test_a_proxy_that_opens_no_tunnel_is_a_failure_of_the_network(tmp_path: Path) -> None:
    refusal = sized(b"who are you?", b"HTTP/1.1 407 Proxy Authentication Required\r\n")
    with forward_proxy(refusal) as proxy:
        way = HttpClient([Route.to("https://replay.example.org", {}, trusted_by(None), NamedProxy(proxy.url))])
        with closing(way), pytest.raises(httpx2.TransportError, match="the proxy answered HTTP 407"):
            ask(way)


def test_tls_within_tls_is_refused_with_a_remedy() -> None:
    with pytest.raises(ServiceError, match="name the proxy by an http:// URL"):
        Route.to("https://replay.example.org", {}, trusted_by(None), NamedProxy("https://proxy:3128"))
