"""The way to the service through a transport of httpx: what a test brings, or HTTP by way of a proxy."""

import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore2
import httpx2

from trainer.answer import Answer
from trainer.direct import IDLE_S
from trainer.errors import ServiceError

CA_FILE_VARIABLE = "REPLAY_CA_FILE"

_WRITTEN_AT_ONCE: Final = 16 << 10
_MOST_CONNECTIONS: Final = 100

_deadline: ContextVar[float] = ContextVar("deadline", default=float("inf"))


class ByTransport:
    """Hands requests to a transport; each has its deadline as the extension `deadline`."""

    def __init__(
        self, base_url: str, headers: Mapping[str, str], transport: httpx2.BaseTransport, timeout_s: float
    ) -> None:
        self._http = httpx2.Client(base_url=base_url, headers=dict(headers), transport=transport, timeout=timeout_s)

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes, deadline: float) -> Answer:
        request = self._http.build_request(
            method, quote(path), headers=dict(headers), content=body, extensions={"deadline": deadline}
        )
        answer = self._http.send(request)
        return Answer(str(answer.url), answer.status_code, answer.headers, answer.content)

    def close(self) -> None:
        self._http.close()


class DeadlineTransport(httpx2.BaseTransport):
    """Opens sockets. A request whose extension `deadline` is a time of `time.monotonic` is over then, whatever comes.

    httpx's own timeouts hold for each read alone: a peer that sends a byte now and then would keep a request for ever.
    Only looking up a host's name is left to the system's own limits. A proxy is taken from the environment, as
    `urllib.request` does.

    Raises, from every request:
        httpx2.TransportError: when the connection failed, or the deadline has passed.
    """

    def __init__(self, trusted: ssl.SSLContext, proxy: httpcore2.Proxy | None = None) -> None:
        self._pool = httpcore2.ConnectionPool(
            ssl_context=trusted,
            proxy=proxy,
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


def proxy_to(base_url: str) -> httpcore2.Proxy | None:
    """The proxy that the environment names for a URL, if it names one."""
    url = urlsplit(base_url)
    proxies = getproxies()
    named = proxies.get(url.scheme) or proxies.get("all")
    if not named or proxy_bypass(url.netloc):
        return None
    proxy = urlsplit(named if "://" in named else f"http://{named}")
    auth = (unquote(proxy.username), unquote(proxy.password or "")) if proxy.username else None
    return httpcore2.Proxy(proxy._replace(netloc=proxy.netloc.rpartition("@")[2]).geturl(), auth=auth)


def is_distrust(error: BaseException | None) -> bool:
    """Whether a failed connection was the certificate's fault, which stays as it is."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None
