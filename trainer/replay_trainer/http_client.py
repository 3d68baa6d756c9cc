"""HTTP/1.1 to one service, on sockets, straight or by way of a proxy.

Answers are parsed by llhttp (`httptools`). A body of a stated length is received where it stays, without a copy: with
httpx a batch costs a training node three to four times the CPU time (`python -m tests.benchmarks.http_client`).
"""

import os
import select
import socket
import ssl
import time
from base64 import b64encode
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Final
from urllib.parse import quote

import httptools
import httpx2
import numpy as np

from replay_service.wire.protocol import CHECKSUM_HEADER
from replay_trainer.errors import ServiceError
from replay_trainer.http_response import HttpResponse
from replay_trainer.proxies import NamedProxy

IDLE_S: Final = 4.0
"""uvicorn closes a connection that has been idle for five seconds."""
MOST_ANSWER_BYTES: Final = 4 << 30
"""What an answer may hold: whatever its head says, no more memory is set aside."""

_MOST_HEAD_BYTES: Final = 64 << 10
_READ_AT_ONCE: Final = 4 << 10
"""So that hardly more than the head is copied to the place of the body."""
_HEARD: Final = {
    name.encode("ascii"): name
    for name in ("content-length", "transfer-encoding", "retry-after", CHECKSUM_HEADER.lower())
}
"""Headers of answers that anything follows from."""
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class HttpClient:
    """Opens sockets, and keeps those that are idle for the next request of any thread.

    A request ends at its deadline, however slowly the other side reads or writes. Only looking up a host's name is left
    to the system's own limits. A process that is forked opens sockets of its own.

    Args:
        base_url: of the service.
        headers: of every request.
        trusted: the certificates that are trusted, of services and of proxies.
        proxy: is asked instead of the service, which it then asks.

    Raises:
        ServiceError: when the URL is of no service, or the proxy is not one for it.
    """

    def __init__(
        self, base_url: str, headers: Mapping[str, str], trusted: ssl.SSLContext, proxy: NamedProxy | None = None
    ) -> None:
        url = httpx2.URL(base_url)
        if url.scheme not in _DEFAULT_PORTS or not url.host:
            raise ServiceError(f"{base_url!r} is no URL of a service; write one such as 'http://127.0.0.1:8400'")
        trusted.set_alpn_protocols(["http/1.1"])
        self._route = _Route.direct(url, trusted) if proxy is None else _Route.by(proxy, url, trusted)
        host = url.netloc.decode("ascii")
        path = url.raw_path.decode("ascii").rstrip("/")
        self._base_url, self._by = f"{url.scheme}://{host}{path}", "" if proxy is None else f" ({proxy})"
        self._target = self._base_url if self._route.asks_by_url else path
        self._headers = _lines({"Host": host, **headers, **self._route.headers, **_basic(url)})
        self._process, self._idle = os.getpid(), _Idle()

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes, deadline: float) -> HttpResponse:
        target = self._target + quote(path)
        head = f"{method} {target} HTTP/1.1\r\n{self._headers}{_lines(headers)}Content-Length: {len(body)}\r\n\r\n"
        try:
            received = self._exchanged(head.encode("ascii") + body, deadline)
        except (OSError, UnicodeError, httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise httpx2.TransportError(f"{type(error).__name__}: {error}") from error
        shown = f"{self._base_url}{path}{self._by}"
        return HttpResponse(shown, received.status, received.headers, received.content, self._by)

    def close(self) -> None:
        self._idle.close()

    def _exchanged(self, request: bytes, deadline: float) -> "_Received":
        if self._process != os.getpid():
            # Two processes that read one socket would get parts of each other's answers.
            self._process, self._idle = os.getpid(), _Idle()
        connection = self._idle.take() or _Connection(self._route.connect(deadline))
        is_sent = False
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # a refusal may have come before all was read
                connection.send(request, deadline)
                is_sent = True
            received = connection.receive(deadline)
        except BaseException:
            connection.close()
            raise
        if is_sent and received.may_go_on:
            self._idle.put(connection)
        else:
            connection.close()
        return received


@dataclass(frozen=True, slots=True)
class _Route:
    """How a connection to a service is made: straight, or by way of a proxy.

    Attributes:
        address: host and port that a socket is connected to.
        tls: the trusted certificates and the server's name, for TLS over the socket or over the tunnel.
        tunnel: the request by which a proxy is asked for a tunnel to the service; None for no tunnel.
        asks_by_url: whether requests name the service's whole URL, as a proxy wants them.
        headers: that every request has on this route.
    """

    address: tuple[str, int]
    tls: tuple[ssl.SSLContext, str] | None
    tunnel: bytes | None = None
    asks_by_url: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def direct(cls, url: httpx2.URL, trusted: ssl.SSLContext) -> "_Route":
        return cls(_address(url), _tls(url, trusted))

    @classmethod
    def by(cls, proxy: NamedProxy, url: httpx2.URL, trusted: ssl.SSLContext) -> "_Route":
        """By way of a proxy: a service over HTTP is asked by its URL, one over HTTPS through a tunnel."""
        at = httpx2.URL(proxy.url)
        headers = {} if proxy.auth is None else {"Proxy-Authorization": _basic_value(*proxy.auth)}
        if url.scheme == "http":
            return cls(_address(at), _tls(at, trusted), asks_by_url=True, headers=headers)
        if at.scheme == "https":
            raise ServiceError(
                f"the service speaks https, and so does the proxy {proxy.url}, which the environment names; one within "
                "the other is not spoken here: name the proxy by an http:// URL, through which https goes unread, or "
                f"add {url.host} to no_proxy"
            )
        host, port = _address(url)
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        tunnel = f"CONNECT {name} HTTP/1.1\r\n{_lines({'Host': name, **headers})}\r\n".encode("ascii")
        return cls(_address(at), _tls(url, trusted), tunnel)

    def connect(self, deadline: float) -> socket.socket:
        connected = socket.create_connection(self.address, _time_left(deadline))
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tunnel is not None:
                self._open_tunnel(connected, self.tunnel, deadline)
            if self.tls is None:
                return connected
            connected.settimeout(_time_left(deadline))
            trusted, name = self.tls
            return trusted.wrap_socket(connected, server_hostname=name)
        except BaseException:
            connected.close()
            raise

    def _open_tunnel(self, connected: socket.socket, tunnel: bytes, deadline: float) -> None:
        connection = _Connection(connected)
        connection.send(tunnel, deadline)
        status = connection.receive_head(deadline).status
        if not 200 <= status < 300:
            raise ConnectionError(f"the proxy answered HTTP {status} when it was asked for a tunnel")


def _address(url: httpx2.URL) -> tuple[str, int]:
    return url.raw_host.decode("ascii"), url.port or _DEFAULT_PORTS[url.scheme]


def _tls(url: httpx2.URL, trusted: ssl.SSLContext) -> tuple[ssl.SSLContext, str] | None:
    return (trusted, url.raw_host.decode("ascii")) if url.scheme == "https" else None


class _Idle:
    """Connections that wait for a request; the one that was used last is taken first."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: deque[tuple[float, _Connection]] = deque()
        self._is_closed = False

    def take(self) -> "_Connection | None":
        """A connection that is open still."""
        while True:
            with self._lock:
                self._drop(time.monotonic() - IDLE_S)
                if not self._waiting:
                    return None
                _, connection = self._waiting.pop()
            if connection.is_quiet():
                return connection
            connection.close()

    def put(self, connection: "_Connection") -> None:
        with self._lock:
            if not self._is_closed:
                self._waiting.append((time.monotonic(), connection))
                return
        connection.close()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._drop(float("inf"))

    def _drop(self, used_before: float) -> None:
        while self._waiting and self._waiting[0][0] < used_before:
            self._waiting.popleft()[1].close()


class _Connection:
    """A connection, for one request at a time."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._readable = select.poll()
        self._readable.register(connected, select.POLLIN)

    def is_quiet(self) -> bool:
        """Whether nothing has come since the last answer: neither the end of the connection nor what nobody awaits."""
        return not self._readable.poll(0)

    def send(self, request: bytes, deadline: float) -> None:
        rest = memoryview(request)
        while rest:
            self._socket.settimeout(_time_left(deadline))
            rest = rest[self._socket.send(rest) :]

    def receive_head(self, deadline: float) -> "_Received":
        """The head of an answer that has nothing but a head, as that to CONNECT."""
        received = _Received()
        try:
            self._receive_head(received, deadline)
        finally:
            del received.parser
        return received

    def receive(self, deadline: float) -> "_Received":
        received = _Received()
        try:
            self._receive_head(received, deadline)
            if received.length is not None and not received.is_whole:
                self._receive_into(received.place(received.length), deadline)
                received.is_whole = True
            while not received.is_whole:
                self._feed(received, _READ_AT_ONCE << 4, deadline)
        finally:
            del received.parser  # they know each other, and would keep the body until garbage is collected
        return received

    def _receive_head(self, received: "_Received", deadline: float) -> None:
        received.parser = httptools.HttpResponseParser(received)
        while not received.is_head_whole:
            self._feed(received, _READ_AT_ONCE, deadline)

    def _feed(self, received: "_Received", most_bytes: int, deadline: float) -> None:
        self._socket.settimeout(_time_left(deadline))
        received.feed(self._socket.recv(most_bytes))

    def _receive_into(self, place: memoryview, deadline: float) -> None:
        while place:
            self._socket.settimeout(_time_left(deadline))
            num_bytes = self._socket.recv_into(place)
            if not num_bytes:
                raise ConnectionError("the connection was closed within an answer")
            place = place[num_bytes:]

    def close(self) -> None:
        self._socket.close()


class _Received:
    """What has come of an answer. The parser calls the methods that begin with `on`.

    Attributes:
        length: of the body, bytes, if the head states it; else its parts say where it ends, or the connection's end.
        may_go_on: whether the connection may have another request.
    """

    parser: httptools.HttpResponseParser

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.length: int | None = None
        self.may_go_on = False
        self.is_head_whole = False
        self.is_whole = False
        self._parts: list[bytes] = []
        self._num_bytes = 0
        self._body: memoryview | None = None

    @property
    def content(self) -> bytes | memoryview:
        return b"".join(self._parts) if self._body is None else self._body

    def feed(self, data: bytes) -> None:
        """Take what has come next; nothing means that the connection has ended."""
        if not data:
            if not self.is_head_whole or self.may_go_on or "transfer-encoding" in self.headers:
                raise ConnectionError("the connection was closed before the end of an answer")
            self.is_whole = True
            return
        self._num_bytes += len(data)
        self.parser.feed_data(data)
        if not self.is_head_whole and self._num_bytes > _MOST_HEAD_BYTES:
            raise ConnectionError(f"the head of an answer has more than {_MOST_HEAD_BYTES} bytes")
        if max(self._num_bytes, self.length or 0) > MOST_ANSWER_BYTES:
            raise ConnectionError(f"an answer has more than {MOST_ANSWER_BYTES} bytes")

    def place(self, length: int) -> memoryview:
        """Where the rest of a body of this length is to stand, behind what came with the head."""
        body = np.empty(length, dtype=np.uint8)
        first = b"".join(self._parts)
        body[: len(first)] = np.frombuffer(first, dtype=np.uint8)
        self._body = body.data.toreadonly()
        return body.data[len(first) :]

    def on_message_begin(self) -> None:
        self.headers.clear()
        if self.is_whole:
            raise ConnectionError("more came than the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        heard = _HEARD.get(name.lower())
        if heard is not None:
            self.headers[heard] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()
        self.may_go_on = self.parser.should_keep_alive()
        if self.status >= 200:  # what comes before the answer says nothing
            self.is_head_whole = True
            length = self.headers.get("content-length")
            self.length = None if length is None else int(length)

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)

    def on_message_complete(self) -> None:
        self.is_whole = self.is_head_whole


def _basic(url: httpx2.URL) -> dict[str, str]:
    """The header that shows the user whom a URL names, if it does (RFC 7617)."""
    return {"Authorization": _basic_value(url.username, url.password)} if url.username else {}


def _basic_value(user: str, password: str) -> str:
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode('ascii')}"


def _lines(headers: Mapping[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())


def _time_left(deadline: float) -> float:
    """How long an operation on a socket may take, seconds.

    Raises:
        TimeoutError: when the deadline has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the request's deadline has passed")
    return left
