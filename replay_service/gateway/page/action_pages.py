"""Pages that change a run: a preview first, then a form that takes the run's name."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from replay_service.errors import InvalidRequest, InvalidRun
from replay_service.gateway.middleware.access import TRAIN, RunName
from replay_service.gateway.page.actions import ACTION_NAMES, ActionName, carry_out, preview, title_of
from replay_service.gateway.page.forms import fields_of
from replay_service.gateway.page.rendering import render
from replay_service.gateway.page.routing import PageRoute
from replay_service.gateway.routes.runs import get_run
from replay_service.gateway.service import ReplayService, Service

router = APIRouter(include_in_schema=False, route_class=PageRoute)

_SEE_OTHER: Final = 303
_CHANGED_MEANWHILE: Final = "the run has changed since this page was made; look at the preview again"
_NOT_CONFIRMED: Final = "nothing was changed: the name that was typed is not the run's"


@router.get("/runs/{run}/change", dependencies=TRAIN)
def show_change(
    request: Request,
    run: RunName,
    service: Service,
    action: Annotated[str, Query(max_length=40)],
    value: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """What a change would do, and the form that makes it."""
    return _page(request, run, service, _action_in(action), value)


@router.post("/runs/{run}/change", dependencies=TRAIN)
async def post_change(request: Request, run: RunName, service: Service) -> Response:
    """Make a change whose preview was seen, if the run's name was typed."""
    fields = await fields_of(request)
    return await run_in_threadpool(_change, request, run, service, fields)


def _change(request: Request, run: str, service: ReplayService, fields: dict[str, str]) -> Response:
    action, value = _action_in(fields.get("action", "")), fields.get("value", "")
    if fields.get("confirm", "").strip() != run:
        return _page(request, run, service, action, value, _NOT_CONFIRMED)
    if fields.get("seen") != preview(service, get_run(run, service), action, value).seen:
        return _page(request, run, service, action, value, _CHANGED_MEANWHILE)
    carry_out(service, run, action, value)
    return RedirectResponse(f"/runs/{run}", _SEE_OTHER)


def _page(
    request: Request, run: str, service: ReplayService, action: ActionName, value: str, problem: str | None = None
) -> Response:
    """The preview of a change; where the change cannot be made, why."""
    context: dict[str, Any] = {"run": run, "action": action, "value": value, "title": title_of(action)}
    try:
        found = preview(service, get_run(run, service), action, value)
    except (InvalidRequest, InvalidRun) as error:
        return render(request, "change.html", status=error.status, **context, problem=error.detail, found=None)
    status = 200 if problem is None else InvalidRequest.status
    return render(request, "change.html", status=status, **context, problem=problem, found=found)


def _action_in(name: str) -> ActionName:
    if name not in ACTION_NAMES:
        raise InvalidRequest(f"there is no such change; there are {', '.join(ACTION_NAMES)}")
    return name
