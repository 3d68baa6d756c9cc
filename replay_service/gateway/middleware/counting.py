"""Counting: every answer of the application, and how long it took."""

import time
from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from replay_service.gateway.metrics.process import REFUSED_AT_CONNECTION, ProcessMetrics
from replay_service.gateway.middleware.problems import RETRY_AT_ONCE

_EVENT_STREAM: Final = b"text/event-stream"
_INTERNAL_ERROR: Final = 500


class Templates:
    """Finds the template of a path, such as /v1/runs/{run}.

    Args:
        templates: of all routes.
    """

    def __init__(self, templates: Iterable[str]) -> None:
        self._patterns = [(compile_path(each)[0], each) for each in dict.fromkeys(templates)]
        self.of = lru_cache(1024)(self._find)

    def _find(self, path: str) -> str:
        found = (template for pattern, template in self._patterns if pattern.match(path))
        return next(found, REFUSED_AT_CONNECTION)


class Counting:
    """Counts answers by route, method and code, and the time that they took. It stands before all other middlewares."""

    def __init__(self, app: ASGIApp, metrics: ProcessMetrics, templates: Iterable[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._templates = Templates(templates)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, code, headers = time.perf_counter(), _INTERNAL_ERROR, dict[bytes, bytes]()

        async def send_counted(message: Message) -> None:
            nonlocal code, headers
            if message["type"] == "http.response.start":
                code, headers = message["status"], dict(message.get("headers", ()))
            await send(message)

        try:
            with self._metrics.in_progress():
                await self._app(scope, receive, send_counted)
        finally:
            # What is raised up to here is answered behind all middlewares.
            route = self._templates.of(scope["path"])
            self._metrics.answered(route, scope["method"], code)
            if code == HTTPStatus.SERVICE_UNAVAILABLE and headers.get(b"retry-after") == RETRY_AT_ONCE.encode():
                self._metrics.refused("awaiting-reports")
            if not headers.get(b"content-type", b"").startswith(_EVENT_STREAM):
                self._metrics.took_so_long(route, time.perf_counter() - began)
