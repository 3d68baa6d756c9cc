"""How a service is asked by one of its URLs: straight, or by way of a proxy."""

import re
import socket
import ssl
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import httpx2

from replay_trainer.errors import ServiceError
from replay_trainer.http_connection import Connection, time_left
from replay_trainer.proxies import NamedProxy

CONNECT_S: Final = 3.0
"""Most seconds until a host takes a connection, or acknowledges what was sent to it."""

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_PORTS: Final = range(1, 1 << 16)
_IN_NO_HOST: Final = re.compile(r"[ ;,]|%20")
_PROBE_EVERY_S: Final = 1


@dataclass(frozen=True, slots=True)
class Route:
    """A service by one of its URLs.

    Attributes:
        base_url: of the service, to be shown: without a user.
        by: the proxy that is asked, in parentheses after a space, to be shown; empty without one.
        at: host and port that a socket is connected to: the service's, or the proxy's.
        target: what stands before a path in the first line of a request.
        lines: the headers of every request, a line each.
        tls: the trusted certificates and the server's name, for TLS over the socket or over the tunnel.
        tunnel: the request by which a proxy is asked for a tunnel to the service; None for no tunnel.
    """

    base_url: str
    by: str
    at: tuple[str, int]
    target: str
    lines: str = field(repr=False)
    tls: tuple[ssl.SSLContext, str] | None = None
    tunnel: bytes | None = field(default=None, repr=False)

    @classmethod
    def to(
        cls, base_url: str, headers: Mapping[str, str], trusted: ssl.SSLContext, proxy: NamedProxy | None = None
    ) -> "Route":
        """The route to a service.

        Args:
            base_url: of the service; it may name a user.
            headers: of every request.
            trusted: the certificates that are trusted, of services and of proxies.
            proxy: is asked instead of the service, which it then asks.

        Raises:
            ServiceError: when the URL is of no service, or the proxy is not one for it.
        """
        url = service_url(base_url)
        trusted.set_alpn_protocols(["http/1.1"])
        host = url.netloc.decode("ascii")
        path = url.raw_path.decode("ascii").rstrip("/")
        shown = f"{url.scheme}://{host}{path}"
        all_headers = {"Host": host, **headers, **_basic(url)}
        if proxy is None:
            return cls(shown, "", _address(url), path, _lines(all_headers), _tls(url, trusted))
        at, by = httpx2.URL(proxy.url), f" ({proxy})"
        shows = {} if proxy.auth is None else {"Proxy-Authorization": _basic_value(*proxy.auth)}
        if url.scheme == "http":
            return cls(shown, by, _address(at), shown, _lines(all_headers | shows), _tls(at, trusted))
        if at.scheme == "https":
            raise ServiceError(
                f"the service speaks https, and so does the proxy {proxy.url}, which the environment names; one within "
                "the other is not spoken here: name the proxy by an http:// URL, through which https goes unread, or "
                f"add {url.host} to no_proxy"
            )
        return cls(shown, by, _address(at), path, _lines(all_headers), _tls(url, trusted), _connect_request(url, shows))

    def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
        """The bytes of a request for a path below the service's URL."""
        first = f"{method} {self.target}{quote(path)} HTTP/1.1"
        head = f"{first}\r\n{self.lines}{_lines(headers)}Content-Length: {len(body)}\r\n\r\n"
        return head.encode("ascii") + body


@dataclass(frozen=True, slots=True)
class Place:
    """One of the addresses of the host that a route leads to.

    Attributes:
        family: of the socket, such as AF_INET.
        address: as `socket.getaddrinfo` gives it.
    """

    route: Route
    family: int
    address: tuple[Any, ...]

    def __str__(self) -> str:
        host = self.route.at[0]
        at = "" if host == self.address[0] else f" at {self.address[0]}"
        return f"{self.route.base_url}{at}{self.route.by}"

    def connect(self, connect_s: float, deadline: float) -> socket.socket:
        """A connection, and TLS over it.

        Args:
            connect_s: how long the host may take to take it, seconds.
            deadline: when it must be ready for a request, a time of `time.monotonic`.

        Raises:
            OSError: when it could not be made in time.
        """
        connected = socket.socket(self.family, socket.SOCK_STREAM)
        try:
            _watch(connected)
            connected.settimeout(connect_s)
            connected.connect(self.address)
            if self.route.tunnel is not None:
                _open_tunnel(connected, self.route.tunnel, deadline)
            if self.route.tls is None:
                return connected
            connected.settimeout(time_left(deadline))
            trusted, name = self.route.tls
            return trusted.wrap_socket(connected, server_hostname=name)
        except BaseException:
            connected.close()
            raise


def service_url(named: str) -> httpx2.URL:
    """The URL of a service; raises ServiceError when it is not one."""
    try:
        url = httpx2.URL(named)
    except httpx2.InvalidURL:
        url = httpx2.URL("")
    is_plain = not (url.query or url.fragment or _IN_NO_HOST.search(url.host)) and (url.port or 80) in _PORTS
    if url.scheme not in _DEFAULT_PORTS or not url.host or not is_plain:
        shown = "what was named" if "@" in named else repr(named)
        raise ServiceError(f"{shown} is no URL of a service; write one such as 'http://127.0.0.1:8400'")
    return url


def _watch(connected: socket.socket) -> None:
    """Have the system end a connection whose host is silent: one that is busy still acknowledges."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": _PROBE_EVERY_S,
        "TCP_KEEPINTVL": _PROBE_EVERY_S,
        "TCP_KEEPCNT": int(CONNECT_S) // _PROBE_EVERY_S,
        "TCP_USER_TIMEOUT": int(1000 * CONNECT_S),
    }
    for name, value in options.items():
        if hasattr(socket, name):  # not every system has all of them
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _open_tunnel(connected: socket.socket, tunnel: bytes, deadline: float) -> None:
    connection = Connection(connected)
    connection.send(tunnel, deadline)
    status = connection.receive_head(deadline).status
    if not 200 <= status < 300:
        raise ConnectionError(f"the proxy answered HTTP {status} when it was asked for a tunnel")


def _connect_request(url: httpx2.URL, headers: Mapping[str, str]) -> bytes:
    host, port = _address(url)
    name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"CONNECT {name} HTTP/1.1\r\n{_lines({'Host': name, **headers})}\r\n".encode("ascii")


def _address(url: httpx2.URL) -> tuple[str, int]:
    return url.raw_host.decode("ascii"), url.port or _DEFAULT_PORTS[url.scheme]


def _tls(url: httpx2.URL, trusted: ssl.SSLContext) -> tuple[ssl.SSLContext, str] | None:
    return (trusted, url.raw_host.decode("ascii")) if url.scheme == "https" else None


def _basic(url: httpx2.URL) -> dict[str, str]:
    """The header that shows the user whom a URL names, if it does (RFC 7617)."""
    return {"Authorization": _basic_value(url.username, url.password)} if url.username else {}


def _basic_value(user: str, password: str) -> str:
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode('ascii')}"


def _lines(headers: Mapping[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())
