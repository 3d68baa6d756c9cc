"""Overload: more requests than can be answered soon are told so at once, rather than kept waiting."""

import threading

from starlette.types import ASGIApp, Receive, Scope, Send

from replay_service.errors import Overloaded
from replay_service.gateway.middleware.access import OPEN_PATHS
from replay_service.gateway.middleware.problems import of_error


class InProgress:
    """Counts the requests that are being answered or wait for it, `most` of them at a time; any thread may."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._places = threading.Semaphore(most)

    def begin(self) -> bool:
        """Whether there is a place for one more, which has it until its `end`."""
        return self._places.acquire(blocking=False)

    def end(self) -> None:
        self._places.release()


class Overload:
    """Refuses requests for which there is no place. Health is told to anybody."""

    def __init__(self, app: ASGIApp, in_progress: InProgress) -> None:
        self._app = app
        self._in_progress = in_progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        if not self._in_progress.begin():
            error = Overloaded(f"{self._in_progress.most} requests are in progress already; ask again in a moment")
            await of_error(error)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_progress.end()
