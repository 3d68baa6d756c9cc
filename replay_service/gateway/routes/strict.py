"""Routes that refuse keys in a query that they do not know: a mistyped filter would else give everything."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class StrictRoute(APIRoute):
    """A route that answers 422 to a query with an unknown key, before anything else is looked at."""

    def get_route_handler(self) -> Handler:
        return strict(super().get_route_handler(), [each.alias for each in self.dependant.query_params])


def strict(handler: Handler, known: list[str]) -> Handler:
    """A handler that refuses queries with other keys than those that are known."""
    taken = f"it takes {', '.join(known)}" if known else "it takes none"

    async def handle(request: Request) -> Response:
        if request.scope["query_string"]:
            unknown = [key for key in request.query_params if key not in known]
            if unknown:
                problem = f"this route has no such key; {taken}"
                raise RequestValidationError([{"loc": ("query", key), "msg": problem} for key in unknown])
        return await handler(request)

    return handle
