"""Templates to answers: escaped, compressed, and under a policy that lets nothing of others run."""

from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import Response

from replay_service.gateway.middleware.access import Access, access_in
from replay_service.gateway.page import words
from replay_service.gateway.page.assets import Assets, packed

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
"""Nothing inline, and nothing from elsewhere (Content Security Policy, level 3)."""

DOCS_POLICY: Final = POLICY.replace("img-src 'self'", "img-src 'self' data:")
"""Swagger UI's style has its icons in it."""

assets: Final = Assets()


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["asset"] = assets.url
    made.filters |= words.FILTERS
    return made


_templates: Final = _environment()


def render(
    request: Request,
    template: str,
    status: int = 200,
    policy: str = POLICY,
    **context: Any,
) -> Response:
    """The answer that a template makes of `context`, for whoever asks."""
    access: Access | None = access_in(request.scope)
    caller = None if access is None else access.caller
    html = _templates.get_template(template).render(caller=caller, has_tokens=_has_tokens(request), **context)
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "same-origin", "Vary": "Accept-Encoding"}
    return packed(request, html.encode(), "text/html", headers, status=status)


def _has_tokens(request: Request) -> bool:
    return request.app.state.tokens is not None
