"""Routes of pages: what goes wrong is said as a page."""

from typing import Final

from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import Response

from replay_service.errors import InvalidRequest, ReplayError
from replay_service.gateway.middleware.problems import journal_unavailable, of_error
from replay_service.gateway.page.rendering import render
from replay_service.gateway.routes.strict import Handler, StrictRoute

_KEPT: Final = ("retry-after",)


class PageRoute(StrictRoute):
    """A route whose errors are pages; it refuses unknown keys in a query, as the JSON routes do."""

    def get_route_handler(self) -> Handler:
        return _with_pages_of_errors(super().get_route_handler())


def _with_pages_of_errors(handler: Handler) -> Handler:
    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except ReplayError as error:
            return error_page(request, error)
        except RequestValidationError as error:
            said = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors()[:5])
            return error_page(request, InvalidRequest(said))
        except SQLAlchemyError as error:
            return error_page(request, journal_unavailable(error, request.scope))

    return handle


def error_page(request: Request, error: ReplayError) -> Response:
    """The page that says an error, with the status and headers of its problem document."""
    page = render(request, "error.html", status=error.status, title=error.title, detail=error.detail)
    headers = of_error(error).headers
    page.headers.update({name: headers[name] for name in _KEPT if name in headers})
    return page
