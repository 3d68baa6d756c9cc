"""Overload: more requests than can be answered soon are told so at once, rather than kept waiting.

Requests that follow a run stay open for hours, so they have a limit of their own.
"""

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from replay_service.errors import Overloaded
from replay_service.gateway.metrics.process import ProcessMetrics
from replay_service.gateway.middleware.access import OPEN_PATHS, header_in
from replay_service.gateway.middleware.problems import of_error


class Overload:
    """Refuses a request while `most` others are being answered or wait for it. Health is told to anybody.

    Of requests for server-sent events, `most_watchers` are open at a time; they do not count among the others.
    """

    def __init__(self, app: ASGIApp, most: int, most_watchers: int, metrics: ProcessMetrics) -> None:
        self._app = app
        self._most = most
        self._most_watchers = most_watchers
        self._metrics = metrics
        self._num_in_progress = 0
        self._num_watchers = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        if is_watch(scope):
            await self._watch(scope, receive, send)
            return
        if self._num_in_progress >= self._most:
            error = Overloaded(f"{self._most} requests are in progress already; ask again in a moment")
            self._metrics.refused("too-many-requests")
            await of_error(error)(scope, receive, send)
            return
        self._num_in_progress += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_in_progress -= 1

    async def _watch(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._num_watchers >= self._most_watchers:
            error = Overloaded(
                f"{self._most_watchers} callers follow runs already (setting max_watchers); ask for pages of events "
                "instead, or come again later"
            )
            self._metrics.refused("too-many-watchers")
            await of_error(error)(scope, receive, send)
            return
        self._num_watchers += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_watchers -= 1


def is_watch(scope: Scope) -> bool:
    """Whether a request asks for server-sent events, and so stays open."""
    if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].endswith("/events"):
        return False
    return EVENT_STREAM in (header_in(scope, b"accept") or "")


EVENT_STREAM: Final = "text/event-stream"
