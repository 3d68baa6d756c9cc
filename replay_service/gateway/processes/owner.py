"""The owner of the runs: the whole application, for the gateways of this service and nobody else."""

from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from replay_service.errors import AccessError, ReplayError
from replay_service.gateway.batches import BatchSource
from replay_service.gateway.middleware.problems import of_database_error, of_error
from replay_service.gateway.processes.link import PLANS_PATH, Link, PlansRequest, caller_in, without_link
from replay_service.gateway.processes.plans import encode_plans, encode_window


class OwnerApp:
    """Answers gateways: passed-on requests as the application answers callers, and requests for plans."""

    def __init__(self, app: FastAPI, link: Link) -> None:
        self._app = app
        self._link = link

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = scope["headers"]
        caller = caller_in(headers) if self._link.is_known(headers) else None
        if caller is not None:
            host, port, scheme = caller
            seen = {**scope, "headers": without_link(headers), "client": (host, port), "scheme": scheme}
            await self._app(seen, receive, send)
        elif self._link.is_known(headers) and scope["path"] == PLANS_PATH:
            await (await self._plans(Request(scope, receive)))(scope, receive, send)
        else:
            response = of_error(AccessError("only gateways of this service may ask here"))
            response.headers["Connection"] = "close"
            await response(scope, receive, send)

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
