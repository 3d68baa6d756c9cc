"""Templates to answers: escaped, compressed, and under a policy that lets nothing of others run."""

from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import Response

from replay_service.gateway.middleware.access import Access, access_in
from replay_service.gateway.packed import Packed
from replay_service.gateway.page import words
from replay_service.gateway.page.assets import Assets

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


def html_of(template: str, **context: Any) -> Packed:
    """The text that a template makes of `context`; the same for everybody."""
    return Packed("text/html", _templates.get_template(template).render(**context).encode())


def render(request: Request, template: str, status: int = 200, policy: str = POLICY, **context: Any) -> Response:
    """The answer that a template makes of `context`, for whoever asks."""
    return answer(request, html_for(request, template, **context), status, policy)


def html_for(request: Request, template: str, **context: Any) -> Packed:
    """The text that a template makes of `context`, for whoever asks."""
    access: Access | None = access_in(request.scope)
    caller = None if access is None else access.caller
    return html_of(template, caller=caller, has_tokens=_has_tokens(request), **context)


def answer(request: Request, html: Packed, status: int = 200, policy: str = POLICY) -> Response:
    return html.answer(request, {"Content-Security-Policy": policy, "Referrer-Policy": "same-origin"}, status)


def _has_tokens(request: Request) -> bool:
    return request.app.state.tokens is not None
