"""The page of one run."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from replay_service.gateway.middleware.access import READ, RequestAccess, RunName
from replay_service.gateway.page.actions import actions_on, may_change
from replay_service.gateway.page.rendering import render
from replay_service.gateway.page.routing import PageRoute
from replay_service.gateway.page.run_parts import CURVE, LIVE, STRATA, answer_with, points_of, whole_page
from replay_service.gateway.routes.runs import get_run
from replay_service.gateway.service import Service

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/runs/{run}", dependencies=READ)
def show_run(request: Request, run: RunName, service: Service, access: RequestAccess) -> Response:
    """One run: what to look at, how it does, and what can be changed."""
    info = get_run(run, service)
    actions = actions_on(info)
    return render(
        request, "run.html", info=info, may_change=may_change(access), actions=actions, **whole_page(service, run)
    )


@router.get("/runs/{run}/live", dependencies=READ)
def show_live(request: Request, run: RunName, service: Service) -> Response:
    """The part of a run's page that changes with every step."""
    return answer_with(LIVE, request, service, run)


@router.get("/runs/{run}/curve", dependencies=READ)
def show_curve(request: Request, run: RunName, service: Service) -> Response:
    """The part of a run's page that tells how its forgetting went."""
    return answer_with(CURVE, request, service, run)


@router.get("/runs/{run}/curve-points", dependencies=READ)
def give_curve_points(
    request: Request, run: RunName, service: Service, domain: Annotated[str | None, Query(max_length=1000)] = None
) -> Response:
    """What the drawing is made of."""
    return points_of(service, run, domain).answer(request, {})


@router.get("/runs/{run}/strata", dependencies=READ)
def show_strata(request: Request, run: RunName, service: Service) -> Response:
    """The part of a run's page that tells of strata and samples."""
    return answer_with(STRATA, request, service, run)
