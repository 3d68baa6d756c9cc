"""Overload: more requests than can be answered soon are told so at once, rather than kept waiting."""

from starlette.types import ASGIApp, Receive, Scope, Send

from replay_service.errors import Overloaded
from replay_service.gateway.middleware.access import OPEN_PATHS
from replay_service.gateway.middleware.problems import of_error


class Overload:
    """Refuses a request while `most` others are being answered or wait for it. Health is told to anybody."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most
        self._num_in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        if self._num_in_progress >= self._most:
            error = Overloaded(f"{self._most} requests are in progress already; ask again in a moment")
            await of_error(error)(scope, receive, send)
            return
        self._num_in_progress += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_in_progress -= 1
