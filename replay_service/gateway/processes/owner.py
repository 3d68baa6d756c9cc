"""The owner of the runs: the whole application, for the gateways of this service and nobody else."""

import time
from collections.abc import Sequence
from typing import Final

from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from replay_service.errors import AccessError, NotOwner, NotReady, ReplayError, ServiceUnavailable
from replay_service.gateway.batches import BatchSource
from replay_service.gateway.middleware.overload import is_watch
from replay_service.gateway.middleware.problems import of_database_error, of_error
from replay_service.gateway.processes.candidate import Candidate
from replay_service.gateway.processes.link import (
    CLIENT_HEADER,
    EPOCH_HEADER,
    OF_EACH_REPLICA,
    OWNER_PATH,
    PLANS_PATH,
    REFUSED_HEADER,
    VERSION,
    VERSION_HEADER,
    Header,
    Link,
    PlansRequest,
    caller_in,
    said_in,
    without_link,
)
from replay_service.gateway.processes.plans import encode_plans, encode_window

_LOOK_EVERY_S: Final = 0.02


class OwnerApp:
    """Answers gateways: passed-on requests as the application answers callers, and requests for plans.

    Args:
        candidate: in a cluster; while it does not own the runs, gateways are told so.
    """

    def __init__(self, app: FastAPI, link: Link, candidate: Candidate | None = None) -> None:
        self._app = app
        self._link = link
        self._candidate = candidate
        self._num_in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = scope["headers"]
        is_own = said_in(headers, CLIENT_HEADER) is None
        refusal = self._refusal(headers, scope["path"], is_own)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        answer = self._answer_gateway if is_own else self._answer_caller
        if is_watch(scope):  # it ends when the caller leaves
            await answer(scope, receive, send)
            return
        self._num_in_progress += 1
        try:
            await answer(scope, receive, send)
        finally:
            self._num_in_progress -= 1

    def wait_finished(self, within_s: float) -> None:
        """Wait until no request is in progress but those that follow a run; of another thread than the server's."""
        ends_at = time.monotonic() + within_s
        while self._num_in_progress and time.monotonic() < ends_at:
            time.sleep(_LOOK_EVERY_S)

    async def _answer_caller(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that a gateway has passed on."""
        host, port, scheme = caller_in(scope["headers"])
        seen = {**scope, "headers": without_link(scope["headers"]), "client": (host, port), "scheme": scheme}
        await self._app(seen, receive, send)

    async def _answer_gateway(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a gateway's own question."""
        request = Request(scope, receive)
        if self._candidate is not None and scope["path"] == OWNER_PATH:
            response = await self._say_owner(request, self._candidate)
        else:
            response = await self._plans(request)
        await response(scope, receive, send)

    def _refusal(self, headers: Sequence[Header], path: str, is_own: bool) -> Response | None:
        """The answer to somebody who may not ask, or asks the wrong process.

        Args:
            is_own: whether it is a gateway's own question, and not a request that it passes on.
        """
        of_candidate = self._candidate is not None and is_own and path == OWNER_PATH
        if not self._link.is_known(headers) or (is_own and not of_candidate and path != PLANS_PATH):
            return _refused("stranger", AccessError("only gateways of this service may ask here"))
        if said_in(headers, VERSION_HEADER) != VERSION:
            problem = "gateways and owner are of releases that do not understand each other; upgrade all replicas"
            return _refused("version", ServiceUnavailable(problem))
        if self._candidate is None or of_candidate:
            return None
        if path in OF_EACH_REPLICA:
            is_ownerless = path == "/readyz" and not self._candidate.owner.address
            return (
                of_error(NotReady("no replica of the cluster owns the runs at this moment")) if is_ownerless else None
            )
        epoch = self._candidate.epoch
        if epoch is None or said_in(headers, EPOCH_HEADER) != b"%d" % epoch:
            return _refused("not-owner", NotOwner("another replica owns the runs; ask again in a moment"))
        return None

    async def _say_owner(self, request: Request, candidate: Candidate) -> Response:
        if request.method == "POST":
            candidate.missed((await request.json())["epoch"])
        owner = candidate.owner
        return JSONResponse({"epoch": owner.epoch, "address": owner.address, "is_here": owner.is_here})

    async def _plans(self, request: Request) -> Response:
        wanted = PlansRequest(**await request.json())
        source: BatchSource = self._app.state.batches
        window = wanted.run, wanted.first_step, wanted.num_steps
        try:
            if wanted.only_made:
                content = encode_plans(await source.planner.planned(*window))
            else:
                content = encode_window(await source.planner.window(*window))
        except ReplayError as error:
            return of_error(error)
        except SQLAlchemyError as error:
            return of_database_error(error, request.scope)
        return Response(content, media_type="application/octet-stream")


def _refused(reason: str, error: ReplayError) -> Response:
    response = of_error(error)
    response.headers[REFUSED_HEADER.decode()] = reason
    if reason != "not-owner":
        response.headers["Connection"] = "close"
    return response
