"""Curves: forgetting along the steps, of one run and of several."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from replay_service.errors import InvalidRequest
from replay_service.gateway import curves
from replay_service.gateway.curve_models import Comparison, ForgettingCurves
from replay_service.gateway.curves import MOST_COMPARED, Stretch
from replay_service.gateway.middleware.access import READ, RequestAccess, RunName, named_run
from replay_service.gateway.middleware.problems import responses
from replay_service.gateway.models import MAX_INT64
from replay_service.gateway.routes.strict import StrictRoute
from replay_service.gateway.service import Service

router = APIRouter(prefix="/v1", tags=["statistics"], route_class=StrictRoute)

First = Annotated[int, Query(alias="from", ge=0, le=MAX_INT64, description="The first step.")]
Last = Annotated[int, Query(alias="to", ge=0, le=MAX_INT64, description="The last step.")]
Points = Annotated[int, Query(ge=2, le=2000, description="At most so many points of a curve.")]


@router.get("/runs/{run}/forgetting", operation_id="get_forgetting", dependencies=READ, responses=responses(404, 422))
def get_forgetting(
    run: RunName,
    service: Service,
    by: Annotated[
        Literal["corpus", "domain"], Query(description="Whether to give the curves of domains too.")
    ] = "corpus",
    domain: Annotated[str | None, Query(description="Of the domains, only this one.")] = None,
    first: First = 0,
    last: Last = MAX_INT64,
    points: Points = 500,
) -> ForgettingCurves:
    """Forgetting along a run's steps, with intervals. Estimates are made of the journal, and kept.

    A look costs what has happened since the last one. Of a long run that nobody has asked about, a look works for about
    a second, and `is_whole` is false until the curve has come to the run's last event.
    """
    return curves.curves_of(service, run, Stretch(first, last, points), by == "domain", domain)


@router.get("/compare", operation_id="compare_runs", dependencies=READ, responses=responses(404, 422))
def compare_runs(
    service: Service,
    access: RequestAccess,
    runs: Annotated[str, Query(max_length=1000, description=f"1 to {MOST_COMPARED} names, with commas between them.")],
    first: First = 0,
    last: Last = MAX_INT64,
    points: Points = 200,
) -> Comparison:
    """Runs side by side, by step: forgetting with its interval, the injection ratio, and the achieved ratio."""
    names = list(dict.fromkeys(each.strip() for each in runs.split(",")))
    if len(names) > MOST_COMPARED:
        raise InvalidRequest(f"{len(names)} runs were named; at most {MOST_COMPARED} are compared at a time")
    for each in names:
        named_run(each, access)
    return curves.comparison_of(service, names, Stretch(first, last, points))
