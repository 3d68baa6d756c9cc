"""A gateway of several: it serves batches itself, from plans that the owner's process makes, and passes on all else.

Who asks is found out where the request is answered: here for batches, by the owner for all else. Host names, and how
much is in progress, are checked here for both.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from replay_service.corpus.reading.reader import CorpusStore
from replay_service.errors import ServiceUnavailable, Stopping
from replay_service.gateway.middleware.access import Authentication
from replay_service.gateway.middleware.audit import Audit
from replay_service.gateway.middleware.checksums import Checksums
from replay_service.gateway.middleware.direct import Direct
from replay_service.gateway.middleware.overload import InProgress, Overload
from replay_service.gateway.middleware.problems import BodyLimit, of_error, of_unforeseen
from replay_service.gateway.middleware.protection import HostCheck, SafeAnswers
from replay_service.gateway.processes.owner_link import OwnerLink, body_of
from replay_service.gateway.processes.owner_side import CLIENT_HEADER
from replay_service.gateway.routes.batches import BatchSource, answer_batches
from replay_service.settings import ServiceSettings
from replay_service.tokens import TokensInForce

_OF_ONE_CONNECTION: Final = frozenset(
    [b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect", CLIENT_HEADER]
)
"""Headers that are not passed on (RFC 9110, section 7.6.1); and nobody but a gateway says who a caller is."""


def create_gateway(settings: ServiceSettings, owner: Path) -> Starlette:
    """The application of a gateway, for the owner's process that serves on the Unix socket at `owner`."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.tokens = TokensInForce(settings.tokens_path) if settings.asks_for_tokens else None
        store = CorpusStore(settings.corpora_place, settings.block_cache_bytes)
        app.state.link = OwnerLink(owner)
        app.state.batches = BatchSource(app.state.link, store, settings.max_steps_per_request)
        try:
            yield
        finally:
            app.state.link.close()
            store.close()

    app = Starlette(lifespan=lifespan, exception_handlers={Exception: of_unforeseen})
    app.state.is_stopping = False
    app.state.in_progress = InProgress(settings.max_concurrent_requests)
    app.add_middleware(Divide, settings=settings)
    app.add_middleware(HostCheck, settings=settings)
    app.add_middleware(Overload, in_progress=app.state.in_progress)
    app.add_middleware(SafeAnswers)
    return app


class Divide:
    """Lets batches be answered here, and all other requests by the owner."""

    def __init__(self, app: ASGIApp, settings: ServiceSettings) -> None:
        self._app = app
        self._direct = Direct(pass_on, {"batches": answer_batches})
        here: ASGIApp = BodyLimit(Checksums(self._direct), settings.max_body_bytes)
        self._batches = Audit(Authentication(here), ["/v1/runs/{run}/batches"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._direct.find(scope) is not None:
            await self._batches(scope, receive, send)
        else:
            await pass_on(scope, receive, send)


async def pass_on(scope: Scope, receive: Receive, send: Send) -> None:
    """Let the owner answer, and pass its answer on as it comes."""
    state = scope["app"].state
    if state.is_stopping and scope["path"] == "/readyz":
        error = Stopping("the service finishes what it has begun, and takes nothing new")
        await of_error(error)(scope, receive, send)
        return
    begun = False
    names = {name for name, _ in scope["headers"]}
    has_body = b"content-length" in names or b"transfer-encoding" in names
    body = body_of(receive, is_chunked=b"transfer-encoding" in names) if has_body else None
    try:
        async with state.link.request(_head(scope), body, is_head=scope["method"] == "HEAD") as answer:
            headers = [each for each in answer.headers if each[0] not in _OF_ONE_CONNECTION | {b"date"}]
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            begun = True
            async for part in answer.parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})
    except ServiceUnavailable as error:
        if begun:  # the server closes the connection: nobody takes a part for the whole
            raise
        await of_error(error)(scope, receive, send)


def _head(scope: Scope) -> bytes:
    """A request's head as it goes to the owner."""
    query = b"?" + scope["query_string"] if scope["query_string"] else b""
    lines = [scope["method"].encode() + b" " + scope["raw_path"] + query + b" HTTP/1.1"]
    lines += [name + b": " + value for name, value in scope["headers"] if name not in _OF_ONE_CONNECTION]
    if any(name == b"transfer-encoding" for name, _ in scope["headers"]):
        lines.append(b"transfer-encoding: chunked")
    host, port = scope["client"] or ("unknown", 0)
    lines.append(CLIENT_HEADER + f": {host} {port} {scope['scheme']}".encode())
    return b"\r\n".join(lines) + b"\r\n\r\n"
