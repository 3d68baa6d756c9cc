"""The way to the service through a transport of httpx: what a test brings, or HTTP by way of a proxy."""

import errno
import os
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpcore2
import httpx2

from replay_trainer.answer import Answer
from replay_trainer.direct import IDLE_S
from replay_trainer.errors import ServiceError
from replay_trainer.proxies import NamedProxy

CA_FILE_VARIABLE = "REPLAY_CA_FILE"

_WRITTEN_AT_ONCE: Final = 16 << 10
_MOST_CONNECTIONS: Final = 100
_UNREACHABLE: Final = (errno.EHOSTUNREACH, errno.ENETUNREACH)

_deadline: ContextVar[float] = ContextVar("deadline", default=float("inf"))


class ByTransport:
    """Hands requests to a transport; each has its deadline as the extension `deadline`.

    Args:
        proxy: that the transport asks, for answers to name.
    """

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        transport: httpx2.BaseTransport,
        timeout_s: float,
        proxy: NamedProxy | None = None,
    ) -> None:
        self._by = "" if proxy is None else f" ({proxy})"
        self._http = httpx2.Client(base_url=base_url, headers=dict(headers), transport=transport, timeout=timeout_s)

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes, deadline: float) -> Answer:
        request = self._http.build_request(
            method, quote(path), headers=dict(headers), content=body, extensions={"deadline": deadline}
        )
        answer = self._http.send(request)
        shown = f"{answer.url}{self._by}"
        return Answer(shown, answer.status_code, answer.headers, answer.content, self._by)

    def close(self) -> None:
        self._http.close()


class DeadlineTransport(httpx2.BaseTransport):
    """Opens sockets. A request whose extension `deadline` is a time of `time.monotonic` is over then, whatever comes.

    httpx's own timeouts hold for each read alone: a peer that sends a byte now and then would keep a request for ever.
    Only looking up a host's name is left to the system's own limits. A process that is forked opens its own.

    Raises, from every request:
        httpx2.TransportError: when the connection failed, or the deadline has passed.
    """

    def __init__(self, trusted: ssl.SSLContext, proxy: NamedProxy | None = None) -> None:
        self._trusted = trusted
        self._proxy = None if proxy is None else httpcore2.Proxy(proxy.url, auth=proxy.auth)
        self._process, self._pool = os.getpid(), self._make_pool()

    def _make_pool(self) -> httpcore2.ConnectionPool:
        return httpcore2.ConnectionPool(
            ssl_context=self._trusted,
            proxy=self._proxy,
            max_connections=_MOST_CONNECTIONS,
            keepalive_expiry=IDLE_S,
            network_backend=_Backend(),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        deadline = request.extensions.get("deadline", float("inf"))
        sent = httpcore2.Request(
            request.method,
            str(request.url),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        if self._process != os.getpid():
            self._process, self._pool = os.getpid(), self._make_pool()
        with _failures(deadline):
            received = self._pool.handle_request(sent)
        assert isinstance(received.stream, Iterable)
        return httpx2.Response(
            received.status, headers=received.headers, stream=_Body(received, deadline), extensions=received.extensions
        )

    def close(self) -> None:
        self._pool.close()


class _Body(httpx2.SyncByteStream):
    """The body of an answer, as it comes."""

    def __init__(self, received: httpcore2.Response, deadline: float) -> None:
        self._received = received
        self._deadline = deadline

    def __iter__(self) -> Iterator[bytes]:
        with _failures(self._deadline):
            yield from self._received.iter_stream()

    def close(self) -> None:
        self._received.close()


@contextmanager
def _failures(deadline: float) -> Iterator[None]:
    """What happens on this thread ends at `deadline`; whatever goes wrong with a connection is one kind of error."""
    token = _deadline.set(deadline)
    try:
        yield
    except (
        httpcore2.TimeoutException,
        httpcore2.NetworkError,
        httpcore2.ProtocolError,
        httpcore2.ProxyError,
        httpcore2.UnsupportedProtocol,
    ) as error:
        raise httpx2.TransportError(f"{type(error).__name__}: {error}") from error
    finally:
        _deadline.reset(token)


def _time_left(timeout: float | None, late: type[Exception]) -> float:
    """How long one operation may take, seconds; raises `late` when the deadline has passed."""
    left = _deadline.get() - time.monotonic()
    if left <= 0:
        raise late("the request's deadline has passed")
    return left if timeout is None else min(left, timeout)


class _Backend(httpcore2.NetworkBackend):
    def __init__(self) -> None:
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        left = _time_left(timeout, httpcore2.ConnectTimeout)
        return _Stream(self._sockets.connect_tcp(host, port, left, local_address, socket_options))

    def sleep(self, seconds: float) -> None:
        self._sockets.sleep(seconds)


class _Stream(httpcore2.NetworkStream):
    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _time_left(timeout, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        view = memoryview(buffer)
        for first in range(0, len(view), _WRITTEN_AT_ONCE):
            part = view[first : first + _WRITTEN_AT_ONCE]
            self._stream.write(bytes(part), _time_left(timeout, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        left = _time_left(timeout, httpcore2.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def trusted_by(ca_file: Path | str | None) -> ssl.SSLContext:
    """Whose certificates are trusted: those of one authority, or those that the machine trusts."""
    if not ca_file:
        return httpx2.create_ssl_context()
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ServiceError(f"the CA file {ca_file} is no PEM file of certificates: {error}") from error


def is_distrust(error: BaseException) -> bool:
    """Whether a failed connection was the certificate's fault, which stays as it is."""
    return any(isinstance(each, ssl.SSLCertVerificationError) for each in _causes(error))


def is_absence(error: BaseException) -> bool:
    """Whether nobody listens where a connection was tried, or there is no such place."""
    return any(
        isinstance(each, ConnectionRefusedError | socket.gaierror)
        or (isinstance(each, OSError) and each.errno in _UNREACHABLE)
        for each in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
