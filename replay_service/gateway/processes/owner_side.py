"""The owner's side of a service with several gateways: what is served on its Unix socket, and nowhere else.

Whoever can open the socket is a gateway of the same service: it lies in a folder that only the service's user can
enter.
"""

from dataclasses import asdict, dataclass
from typing import Final

from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from replay_service.errors import ReplayError
from replay_service.gateway.middleware.problems import of_database_error, of_error
from replay_service.gateway.routes.batches import BatchSource
from replay_service.gateway.wire.plans import encode_plans, encode_window

CLIENT_HEADER: Final = b"replay-gateway-client"
"""In every request that a gateway passes on: the caller's address and port, and whether it came by http or https. What
comes without it is the gateway's own, and asks for plans."""


@dataclass(frozen=True, slots=True)
class PlansRequest:
    """A window of steps of a run; `only_made`: leave out plans that nobody has asked for so far."""

    run: str
    first_step: int
    num_steps: int
    only_made: bool = False

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


class OwnerSide:
    """The whole application, for gateways: it knows the callers behind them, and gives them plans."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = [value for name, value in scope["headers"] if name == CLIENT_HEADER]
        if said:
            await self._app(_seen_through(scope, said[0]), receive, send)
        else:
            await (await self._plans(Request(scope, receive)))(scope, receive, send)

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


def _seen_through(scope: Scope, said: bytes) -> Scope:
    """The request as the gateway got it."""
    headers = [each for each in scope["headers"] if each[0] != CLIENT_HEADER]
    host, port, scheme = said.decode().split(" ")
    return {**scope, "headers": headers, "client": (host, int(port)), "scheme": scheme}
