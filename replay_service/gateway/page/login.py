"""Logging in: a token is posted once, and a cookie bears it afterwards."""

from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from replay_service.errors import AccessError, InvalidToken, MissingToken
from replay_service.gateway.middleware.access import LOGIN_PATH, caller_with, changes_nothing, grant
from replay_service.gateway.middleware.cookies import log_in, log_out
from replay_service.gateway.middleware.problems import of_error
from replay_service.gateway.page.forms import fields_of
from replay_service.gateway.page.rendering import render
from replay_service.gateway.page.routing import PageRoute
from replay_service.tokens import TokensInForce

router = APIRouter(include_in_schema=False, route_class=PageRoute)

_SEE_OTHER: Final = 303
_API: Final = ("/v1/", "/openapi.json")


def refusal(error: AccessError, scope: Scope) -> Response:
    """The answer to somebody without a good token: the login form to a browser that asks for a page."""
    response = of_error(error)
    if not _wants_page(scope):
        return response
    request = Request(scope)
    target = scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
    problem = None if isinstance(error, MissingToken) else error.detail
    page = render(request, "login.html", status=error.status, target=target, problem=problem)
    page.headers["WWW-Authenticate"] = response.headers["WWW-Authenticate"]
    return page


@router.get(LOGIN_PATH)
async def show_login(request: Request) -> Response:
    """The form that takes a token."""
    return render(request, "login.html", target="/", problem=None)


@router.post(LOGIN_PATH)
async def post_login(request: Request) -> Response:
    """Take a token into the browser's cookie, if it is one in force."""
    fields = await fields_of(request)
    target = _own_path(fields.get("target", "/"))
    response = RedirectResponse(target, _SEE_OTHER)
    in_force: TokensInForce | None = request.app.state.tokens
    if in_force is None:
        return response
    token = fields.get("token", "").strip()
    try:
        grant(request.scope, caller_with(token, in_force, datetime.now(UTC)))
    except InvalidToken as error:
        return render(request, "login.html", status=error.status, target=target, problem=error.detail)
    log_in(response, request.scope, token)
    return response


@router.post("/logout")
async def post_logout(request: Request) -> Response:
    """Let the browser forget its token."""
    changes_nothing(request.scope)
    response = RedirectResponse("/", _SEE_OTHER)
    log_out(response, request.scope)
    return response


def _wants_page(scope: Scope) -> bool:
    is_look = scope["method"] in ("GET", "HEAD") and not scope["path"].startswith(_API)
    return is_look and "text/html" in Request(scope).headers.get("accept", "")


def _own_path(target: str) -> str:
    """A path on this service, whatever a form says: nobody is led elsewhere."""
    try:
        parts = urlsplit(target)
    except ValueError:
        return "/"
    is_own = not parts.scheme and not parts.netloc and target.startswith("/") and not target.startswith("//")
    return target if is_own and "\\" not in target and target.isprintable() else "/"
