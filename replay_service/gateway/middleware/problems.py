"""Every error as a problem document (RFC 9457), whatever raised it."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from replay_service.errors import (
    AwaitingReports,
    BodyTooLarge,
    InvalidRequest,
    InvalidToken,
    JournalUnavailable,
    ReplayError,
)
from replay_service.gateway.models import Problem

PROBLEM_JSON = "application/problem+json"
TYPE_PREFIX = "urn:replay-service:problem:"
SAFE_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
"""Nobody guesses what an answer is, and nobody on the way keeps it."""

RETRY_AT_ONCE: Final = "0"
"""The Retry-After of a plan that waits for reports, and of no other answer."""

_CHALLENGE: Final = 'Bearer realm="replay-service"'

_log = structlog.get_logger()


def problem(status: int, slug: str, title: str, detail: str, **extensions: object) -> JSONResponse:
    content = {"type": TYPE_PREFIX + slug, "title": title, "status": status, "detail": detail, **extensions}
    return JSONResponse(jsonable_encoder(content), status_code=status, media_type=PROBLEM_JSON)


def of_error(error: ReplayError) -> JSONResponse:
    response = problem(error.status, error.slug, error.title, error.detail, **error.extensions)
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = RETRY_AT_ONCE if isinstance(error, AwaitingReports) else "1"
    if error.status == HTTPStatus.UNAUTHORIZED:
        # RFC 6750, section 3.1: an error is named only to those who have tried.
        failed = isinstance(error, InvalidToken)
        response.headers["WWW-Authenticate"] = _CHALLENGE + (', error="invalid_token"' if failed else "")
    return response


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the problems that a route answers with."""
    content = {PROBLEM_JSON: {"schema": Problem.model_json_schema()}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def install_problem_handlers(app: FastAPI) -> None:
    @app.exception_handler(ReplayError)
    async def replay_error(_request: Request, error: ReplayError) -> Response:
        return of_error(error)

    @app.exception_handler(RequestValidationError)
    async def validation_error(_request: Request, error: RequestValidationError) -> Response:
        return invalid(error.errors())

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        phrase = HTTPStatus(error.status_code).phrase
        response = problem(error.status_code, phrase.lower().replace(" ", "-"), phrase, str(error.detail))
        response.headers.update(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            response.headers["Allow"] = ", ".join(_methods_at(app, request.scope["path"]))
        return response

    @app.exception_handler(SQLAlchemyError)
    async def database_error(request: Request, error: SQLAlchemyError) -> Response:
        return of_database_error(error, request.scope)

    @app.exception_handler(ClientDisconnect)
    async def gone(_request: Request, _error: ClientDisconnect) -> Response:
        return of_error(InvalidRequest("the body did not come to its end"))  # nobody reads it

    app.add_exception_handler(Exception, of_unexpected)


def _methods_at(app: FastAPI, path: str) -> list[str]:
    """The methods of all routes at a path: Starlette names those of the first one alone (RFC 9110, section 10.2.1)."""
    found: set[str] = set()
    for route in iter_route_contexts(app.routes):
        if route.path is not None and compile_path(route.path)[0].match(path):
            found |= route.methods or set()
    return sorted(found)


def of_database_error(error: SQLAlchemyError, scope: Scope) -> JSONResponse:
    """The problem document when the journal does not answer; the log says more."""
    return of_error(journal_unavailable(error, scope))


def journal_unavailable(error: SQLAlchemyError, scope: Scope) -> JournalUnavailable:
    """What a caller is told when the journal does not answer; the log says more."""
    _log.error("database error", method=scope["method"], path=scope["path"], exc_info=error)
    return JournalUnavailable("the journal cannot be read now; the service's log says why")


async def of_unexpected(request: Request, error: Exception) -> Response:
    """The problem document of any other exception; the log says more."""
    _log.error("unexpected error", method=request.method, path=request.scope["path"], exc_info=error)
    response = problem(500, "internal-error", "Internal error", "the service failed; its log says why")
    response.headers.update(SAFE_HEADERS)  # this answer goes out past every middleware
    return response


def invalid(errors: Sequence[Any]) -> JSONResponse:
    """The problem that says which fields of a request are wrong, and why."""
    fields = [{"field": ".".join(str(part) for part in each["loc"]), "problem": each["msg"]} for each in errors]
    detail = "; ".join(f"{each['field']}: {each['problem']}" for each in fields[:5])
    return problem(InvalidRequest.status, InvalidRequest.slug, InvalidRequest.title, detail, errors=fields)


class BodyLimit:
    """Refuses a body of more than `max_body_bytes`, before it is read where its length is given."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._counting = RequestBodyLimitMiddleware(app, max_body_size=max_body_bytes)
        self._problem = of_error(BodyTooLarge(f"a request body may have {max_body_bytes} bytes; send less at once"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if b"transfer-encoding" in headers:
            await self._count(scope, receive, send)
        elif int(headers.get(b"content-length", b"0")) > self._max_body_bytes:
            await self._problem(scope, receive, send)
        else:  # the server reads no more than that
            await self._app(scope, receive, send)

    async def _count(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Starlette counts what comes, and refuses in plain text; this says it as a problem document."""
        refused = False

        async def send_problem(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] == BodyTooLarge.status:
                refused = True
                await self._problem(scope, receive, send)
            elif not refused:
                await send(message)

        await self._counting(scope, receive, send_problem)
