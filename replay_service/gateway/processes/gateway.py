"""A gateway of several: it serves batches itself, from plans that the owner makes, and passes on all else.

Every request passes the middlewares here first, so the owner hears only of callers who may ask; it checks them again,
since it alone knows what a run is.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import anyio
from fastapi import FastAPI
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from replay_service.corpus.reading.reader import CorpusStore
from replay_service.errors import Stopping
from replay_service.gateway.app import batch_source, templates, tokens_in_force
from replay_service.gateway.metrics.corpora import tell_damage
from replay_service.gateway.metrics.process import ProcessMetrics
from replay_service.gateway.middleware.audit import passed_on
from replay_service.gateway.middleware.overload import is_watch
from replay_service.gateway.middleware.problems import install_problem_handlers, of_error
from replay_service.gateway.middleware.stack import add_middleware
from replay_service.gateway.page.login import refusal
from replay_service.gateway.processes.child import StartMessage
from replay_service.gateway.processes.link import OF_EACH_REPLICA, Header, Link, without_link
from replay_service.gateway.processes.owner_client import OWNER_LOST, OwnerClient
from replay_service.gateway.processes.owner_directory import FixedPlace, FollowedOwner
from replay_service.gateway.routes import batches
from replay_service.gateway.tracing import NO_NATIVE_TELEMETRY, trace_if_wanted

DAMAGE_EVERY_S: Final = 5.0
"""How often a gateway tells of the damage that it has found."""

_OF_ONE_CONNECTION: Final = frozenset(
    [b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect", b"content-length"]
)
"""Headers of a request that are not passed on (RFC 9110, section 7.6.1), and the length, which is counted anew."""

_OF_THE_LINK: Final = frozenset([b"connection", b"keep-alive", b"transfer-encoding", b"date"])
"""Headers of an answer that are not passed on."""

_NOTICE_STOP_S: Final = 0.1


def create_gateway(message: StartMessage) -> FastAPI:
    """The application of a gateway."""
    settings, link = message.settings, message.link
    metrics = ProcessMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.tokens = tokens_in_force(settings, message.asks_for_tokens)
        store = CorpusStore(settings.corpora_place, settings.block_cache_bytes)
        app.state.own = OwnerClient(link, FixedPlace(message.own_place()))
        in_cluster = message.replica is not None
        app.state.owner = OwnerClient(link, FollowedOwner(link, message.own_place())) if in_cluster else app.state.own
        app.state.batches = batch_source(settings, app.state.owner, store)
        telling = asyncio.create_task(_keep_telling(store, metrics))
        try:
            yield
        finally:
            telling.cancel()
            await app.state.owner.close()
            await app.state.own.close()
            store.close()

    app = FastAPI(lifespan=lifespan, openapi_url=None, redirect_slashes=False, telemetry=NO_NATIVE_TELEMETRY)
    app.state.is_stopping = False
    app.state.metrics = metrics
    app.state.link = link
    install_problem_handlers(app)
    app.include_router(batches.router)
    app.mount("", pass_on)
    add_middleware(app, settings, templates(), refusal, metrics)
    trace_if_wanted(app, settings.trace_to)
    return app


async def _keep_telling(store: CorpusStore, metrics: ProcessMetrics) -> None:
    """A gateway answers no scrape itself, and only those who read a corpus find its damage."""
    while True:
        tell_damage(store, metrics)
        await asyncio.sleep(DAMAGE_EVERY_S)


async def pass_on(scope: Scope, receive: Receive, send: Send) -> None:
    """Let the owner answer a request, or this replica's own process what each replica answers; and give the answer."""
    state = scope["app"].state
    if state.is_stopping and scope["path"] == "/readyz":
        error = Stopping("the service finishes what it has begun, and takes nothing new")
        await of_error(error)(scope, receive, send)
        return
    passed_on(scope)
    if is_watch(scope):
        await relay(scope, receive, send)
        return
    body = await Request(scope, receive).body()
    asked: OwnerClient = state.own if scope["path"] in OF_EACH_REPLICA else state.owner
    answer = await asked.request(scope["method"], _target(scope), _headers(scope), body)
    fields = _fields(answer.headers)
    if not any(name == b"content-length" for name, _ in fields):  # it came in parts
        fields.append((b"content-length", b"%d" % len(answer.body)))
    await send({"type": "http.response.start", "status": answer.status, "headers": fields})
    await send({"type": "http.response.body", "body": answer.body})


def _target(scope: Scope) -> bytes:
    target: bytes = scope["raw_path"]
    return target + b"?" + scope["query_string"] if scope["query_string"] else target


def _headers(scope: Scope) -> list[Header]:
    """Of a request, as the owner gets them."""
    # Spaces around a value are no part of it, but the parser leaves them (RFC 9110, section 5.5).
    given = [(name, value.strip(b" \t")) for name, value in without_link(scope["headers"])]
    link: Link = scope["app"].state.link
    return [*(each for each in given if each[0] not in _OF_ONE_CONNECTION), *link.headers(scope)]


def _fields(headers: Sequence[Header]) -> list[Header]:
    """Headers of an answer, as the caller gets them."""
    return [each for each in headers if each[0] not in _OF_THE_LINK]


async def relay(scope: Scope, receive: Receive, send: Send) -> None:
    """Let the owner answer a request bit by bit, and pass each part on as it comes.

    The answer ends when the owner ends it, when this gateway stops, or when the caller leaves. A part is passed on
    before the next one is read, so that a caller who does not read holds the owner up, and nothing piles up here.
    """
    state = scope["app"].state
    async with state.owner.stream(_target(scope), _headers(scope)) as answer, anyio.create_task_group() as tasks:
        fields = _fields([(name.lower(), value) for name, value in answer.headers])
        await send({"type": "http.response.start", "status": answer.status, "headers": fields})
        tasks.start_soon(_cancel_when_over, tasks.cancel_scope, state)
        tasks.start_soon(_cancel_when_left, tasks.cancel_scope, receive)
        # Where the owner is lost there is nothing to say in the midst of an answer: the caller connects again.
        with suppress(*OWNER_LOST):
            async for part in answer.aiter_stream():
                await send({"type": "http.response.body", "body": part, "more_body": True})
        tasks.cancel_scope.cancel()
    await send({"type": "http.response.body", "body": b""})


async def _cancel_when_over(scope: anyio.CancelScope, state: Any) -> None:
    while not state.is_stopping:
        await anyio.sleep(_NOTICE_STOP_S)
    scope.cancel()


async def _cancel_when_left(scope: anyio.CancelScope, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
