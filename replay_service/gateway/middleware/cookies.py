"""The cookie that bears a browser's token, once somebody has logged in with it.

It holds the token itself, so that the tokens file alone decides: a token that was revoked there, or that has expired,
lets nobody in. No script reads the cookie, and no page of another site makes a browser send it.
"""

from http.cookies import CookieError, SimpleCookie
from typing import Final

from starlette.responses import Response
from starlette.types import Scope

_NAME: Final = "replay-token"
_SECURE_NAME: Final = f"__Host-{_NAME}"
"""A browser takes it over HTTPS alone, and from this host alone (RFC 6265bis, section 4.1.3.2)."""


def cookie_name(scope: Scope) -> str:
    """It bears the port that the browser asks: cookies are a host's, and each service on it has a token of its own."""
    host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
    port = host.rpartition(":")[2]
    name = _SECURE_NAME if _is_secure(scope) else _NAME
    return f"{name}-{port}" if port.isdecimal() and port.isascii() else name


def token_in(scope: Scope) -> str | None:
    """The token in a request's cookie; None if it bears none."""
    for name, value in scope["headers"]:
        if name == b"cookie":
            found = _cookies(value.decode("latin-1")).get(cookie_name(scope))
            if found is not None:
                return found.value
    return None


def log_in(response: Response, scope: Scope, token: str) -> None:
    """Let the browser send the token with its next requests, until it is closed."""
    response.set_cookie(cookie_name(scope), token, path="/", httponly=True, samesite="strict", secure=_is_secure(scope))


def log_out(response: Response, scope: Scope) -> None:
    """Let the browser forget the token."""
    response.delete_cookie(cookie_name(scope), path="/", httponly=True, samesite="strict", secure=_is_secure(scope))


def _is_secure(scope: Scope) -> bool:
    return bool(scope["scheme"] == "https")


def _cookies(header: str) -> SimpleCookie:
    try:
        return SimpleCookie(header)
    except CookieError:
        return SimpleCookie()
