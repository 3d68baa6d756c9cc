"""The API's description for people, and the files that all pages load."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from replay_service.errors import ReplayError
from replay_service.gateway.middleware.access import ASSETS_PATH, READ
from replay_service.gateway.page.rendering import DOCS_POLICY, assets, render
from replay_service.gateway.page.routing import PageRoute

router = APIRouter(include_in_schema=False, route_class=PageRoute)


class UnknownAsset(ReplayError):
    slug, title, status = "unknown-asset", "There is no such file", 404


@router.get("/docs", dependencies=READ)
async def show_docs(request: Request) -> Response:
    """The HTTP API, to read and to try."""
    return render(request, "docs.html", policy=DOCS_POLICY)


@router.get(ASSETS_PATH + "{name}")
async def get_asset(name: str, request: Request) -> Response:
    """A script, a style or the icon."""
    found = assets.answer(name, request)
    if found is None:
        raise UnknownAsset("the page is of another release of the service; load it again")
    return found
