"""Protection of a browser's user: allowed host names, refusal of other sites' requests, and safe headers."""

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from replay_service.errors import CrossSite, HostNotAllowed, ReplayError
from replay_service.gateway.middleware.access import OPEN_PATHS, header_in, is_by_cookie
from replay_service.gateway.middleware.problems import SAFE_HEADERS, of_error
from replay_service.settings import ServiceSettings, is_loopback

SAFE_FIELDS: Final = [(name.lower().encode(), value.encode()) for name, value in SAFE_HEADERS.items()]
_SAFE_NAMES: Final = frozenset(name for name, _ in SAFE_FIELDS)
_KEPT_FOR_EVER: Final = b"immutable"


class SafeAnswers:
    """Puts SAFE_HEADERS on every answer; one that never changes may say so, and is kept."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = message.get("headers", ())
                mine = [each for each in given if each[0] not in _SAFE_NAMES or _is_for_ever(each)]
                has = {name for name, _ in mine}
                message["headers"] = mine + [each for each in SAFE_FIELDS if each[0] not in has]
            await send(message)

        await self._app(scope, receive, send_safe)


def _is_for_ever(field: tuple[bytes, bytes]) -> bool:
    return field[0] == b"cache-control" and _KEPT_FOR_EVER in field[1]


class HostCheck:
    """Answers only what was sent to a name of the service's own.

    A web page whose name was made to lead to 127.0.0.1 (DNS rebinding) reaches a service there with the page's name in
    the Host header. Health is told under any name: whoever looks after the service asks by its address.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings) -> None:
        self._app = app
        self._rule = HostRule(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_checked = scope["type"] == "http" and scope["path"] not in OPEN_PATHS
        if is_checked and not self._rule.allows(header_in(scope, b"host") or ""):
            error = HostNotAllowed(
                "the Host header is no name that this service answers to; its setting allowed_hosts lists them"
            )
            await of_error(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


class CrossSiteCheck:
    """Refuses changes that a web page of another site makes a browser ask for.

    A browser sends what looks like a form to any address for any page, and says which page asks. What bears a browser's
    cookie must say so, and so must a form (`page.forms`). All else that changes something takes a JSON or Arrow body,
    which no form can send.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_change = scope["type"] == "http" and scope["method"] not in _SAFE_METHODS
        error = self._problem(scope) if is_change else None
        if error is None:
            await self._app(scope, receive, send)
        else:
            await of_error(error)(scope, receive, send)

    def _problem(self, scope: Scope) -> ReplayError | None:
        site, origin = header_in(scope, b"sec-fetch-site"), header_in(scope, b"origin")
        if site is None and origin is None and is_by_cookie(scope):
            return says_nothing_of_its_origin()
        if site not in (None, "same-origin", "none") or (origin is not None and not _is_own(origin, scope)):
            return CrossSite("a web page of another site asks for this change; ask from a page of this service")
        return None


def says_nothing_of_its_origin() -> CrossSite:
    return CrossSite("a change by a form or with a browser's cookie must say its Origin; send that header")


def _is_own(origin: str, scope: Scope) -> bool:
    """Whether a page is one of the service's: it comes from the name that the request was sent to."""
    return origin.partition("://")[2] == header_in(scope, b"host")


_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class HostRule:
    """Which Host headers name the service."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._allowed = settings.allowed_hosts
        self._only_loopback = not settings.allowed_hosts and settings.listens_on_loopback
        self.allows = lru_cache(1024)(self._judge)

    def _judge(self, header: str) -> bool:
        host = _name_in(header)
        if self._only_loopback:
            return is_loopback(host)
        return not self._allowed or _is_address(host) or _is_one_of(host, self._allowed)


def _is_address(host: str) -> bool:
    """Whether no name stands there that could be made to lead elsewhere. Scrapes of Prometheus ask by addresses."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_one_of(host: str, allowed: Sequence[str]) -> bool:
    return any(
        host == each.lower() or each == "*" or (each.startswith("*.") and host.endswith(each[1:].lower()))
        for each in allowed
    )


def _name_in(header: str) -> str:
    """The name in a Host header, without its port, in lower case; empty when there is none."""
    try:
        return "" if "@" in header else urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
