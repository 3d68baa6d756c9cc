"""The way to an application in the same process: HTTP without a socket."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI


class InProcess(httpx2.BaseTransport):
    """Hands the requests of synchronous clients, on any thread, to an application that runs in an event loop."""

    def __init__(self, app: FastAPI, portal: BlockingPortal) -> None:
        self._portal = portal
        self._asgi = httpx2.ASGITransport(app, raise_app_exceptions=False)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        try:
            return self._portal.call(self._answer, request)
        except RuntimeError as error:
            raise httpx2.ConnectError(f"the service of this test has ended: {error}") from error

    async def _answer(self, request: httpx2.Request) -> httpx2.Response:
        answer = await self._asgi.handle_async_request(request)
        return httpx2.Response(answer.status_code, headers=answer.headers, content=await answer.aread())


@contextmanager
def in_process(app: FastAPI) -> Iterator[InProcess]:
    """Run an application in an event loop of its own until the block ends."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(app.router.lifespan_context(app)):
        yield InProcess(app, portal)
