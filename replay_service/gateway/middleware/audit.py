"""The audit: a line in the log for every change, and for every one that was refused for want of a token."""

import logging
from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus
from typing import Final

import structlog
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from replay_service.gateway.middleware.access import ANONYMOUS, Access, Caller, access_in
from replay_service.names import is_name

_REFUSED: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_PASSED_ON: Final = "replay.passed_on"

# At every level of the log, who changed what is written down.
_log = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))


def passed_on(scope: Scope) -> None:
    """Say that another process of the service answers a request, and writes down what it changes."""
    scope[_PASSED_ON] = True


class Audit:
    """Logs who has changed what, from where, before the answer goes out. No body, no token, no query.

    Args:
        templates: the paths of the application's routes, such as /v1/runs/{run}: what a caller wrote instead of one is
            not logged.
    """

    def __init__(self, app: ASGIApp, templates: Iterable[str]) -> None:
        self._app = app
        self._route = lru_cache(1024)(self._find_route)
        self._routes = [(compile_path(each)[0], each) for each in dict.fromkeys(templates)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "GET":
            await self._app(scope, receive, send)
            return

        async def send_audited(message: Message) -> None:
            if message["type"] == "http.response.start" and _PASSED_ON not in scope:
                status, access = message["status"], access_in(scope)
                is_change = status < HTTPStatus.BAD_REQUEST and (access is None or access.is_change)
                if is_change or status in _REFUSED:
                    self._write(scope, status, access)
            await send(message)

        await self._app(scope, receive, send_audited)

    def _write(self, scope: Scope, status: int, access: Access | None) -> None:
        route, names = self._route(scope["path"])
        if access is not None:
            names = names | {"run": access.run or names.get("run"), "corpus": access.corpus or names.get("corpus")}
        named = {name: value for name, value in names.items() if value is not None}
        write_line(scope, ANONYMOUS if access is None else access.caller, status, route, **named)

    def _find_route(self, path: str) -> tuple[str | None, dict[str, str | None]]:
        """The template of a path, and the runs and corpora that it names."""
        for pattern, template in self._routes:
            if found := pattern.match(path):
                parts = found.groupdict()
                return template, {name: parts[name] for name in ("run", "corpus") if is_name(parts.get(name, ""))}
        return None, {}


def write_line(scope: Scope, caller: Caller, status: int, route: str | None, **named: str) -> None:
    """Write down who has asked for what; `named` are the runs and corpora that it was about."""
    client = (scope["client"] or ("unknown",))[0]
    _log.info("audit", who=caller.name, client=client, method=scope["method"], route=route, **named, status=int(status))
