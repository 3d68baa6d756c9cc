"""Statistics: what a run has learned of its corpus."""

from typing import Annotated

from fastapi import APIRouter, Query

from replay_service.gateway import statistics
from replay_service.gateway.middleware.access import READ, RunName
from replay_service.gateway.middleware.problems import responses
from replay_service.gateway.routes.strict import StrictRoute
from replay_service.gateway.service import Service
from replay_service.gateway.statistics_models import RunStats, StrataList

router = APIRouter(prefix="/v1/runs/{run}", tags=["statistics"], route_class=StrictRoute)


@router.get("/stats", operation_id="get_stats", dependencies=READ, responses=responses(404, 422))
def get_stats(
    run: RunName,
    service: Service,
    max_age_s: Annotated[
        float, Query(ge=0, le=60, allow_inf_nan=False, description="How old the answer may be, seconds.")
    ] = 0.0,
) -> RunStats:
    """A run's state, its statistics over all strata, what it has forgotten, and what to do about it.

    Whoever asks again and again gives `max_age_s`: an answer that was made so lately serves all who do. `as_of` says of
    which event it is.
    """
    return statistics.stats_of(service, run, max_age_s)


@router.get("/strata", operation_id="get_strata", dependencies=READ, responses=responses(404, 422))
def get_strata(
    run: RunName,
    service: Service,
    domain: Annotated[str | None, Query(description="Only strata of this domain (group of strata).")] = None,
) -> StrataList:
    """The statistics, the damage rate and the share of the draws of each stratum."""
    return statistics.strata_of(service, run, domain)
