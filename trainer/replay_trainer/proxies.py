"""The proxy that the environment names for a service: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, less NO_PROXY."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from replay_trainer.errors import ServiceError

_SCHEMES: Final = ("http", "https")


@dataclass(frozen=True, slots=True)
class NamedProxy:
    """A proxy, as the environment names it.

    Attributes:
        url: without user and password, so that it may be shown.
        auth: user and password, if it takes them.
    """

    url: str
    auth: tuple[str, str] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"by way of the proxy {self.url}, which the environment names"


def proxy_to(base_url: str) -> NamedProxy | None:
    """The proxy that the environment names for a URL, as `urllib.request` reads it, if it names one.

    NO_PROXY may also hold networks, such as 10.0.0.0/8. A proxy that speaks SOCKS is not asked for loopback.

    Raises:
        ServiceError: when what is named is no HTTP proxy.
    """
    url, proxies = urlsplit(base_url), getproxies()
    variable = url.scheme if proxies.get(url.scheme) else "all"
    named = proxies.get(variable)
    if not named or proxy_bypass(url.netloc.rpartition("@")[2]) or _is_in_network(url.hostname or "", proxies):
        return None
    proxy = urlsplit(named if "://" in named else f"http://{named}")
    shown = proxy._replace(netloc=proxy.netloc.rpartition("@")[2]).geturl()
    if proxy.scheme.startswith("socks") and _is_loopback(url.hostname or ""):
        return None
    if proxy.scheme not in _SCHEMES or not _has_address(proxy):
        raise ServiceError(
            f"the environment variable {variable}_proxy names {shown}, which is no HTTP proxy, the only kind that the "
            f"client can ask; name one such as http://proxy.example.org:3128, or add {url.hostname} to no_proxy to "
            "reach the service without"
        )
    auth = (unquote(proxy.username), unquote(proxy.password or "")) if proxy.username else None
    return NamedProxy(shown, auth)


def _has_address(proxy: SplitResult) -> bool:
    try:
        return bool(proxy.hostname) and proxy.port != 0
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_in_network(host: str, proxies: Mapping[str, str]) -> bool:
    """Whether a host that is an address lies in a network that NO_PROXY names; a name is not looked up."""
    try:
        address = ip_address(host)
    except ValueError:
        return False
    networks = (each.strip() for each in proxies.get("no", "").split(",") if "/" in each)
    return any(_holds(network, address) for network in networks)


def _holds(network: str, address: object) -> bool:
    try:
        return address in ip_network(network, strict=False)
    except ValueError:
        return False
