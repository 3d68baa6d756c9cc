"""Samples: what was measured of each one that was rehearsed."""

from typing import Annotated

from fastapi import APIRouter, Query

from replay_service.gateway import rehearsed_samples
from replay_service.gateway.middleware.access import READ, RunName
from replay_service.gateway.middleware.problems import responses
from replay_service.gateway.routes.strict import StrictRoute
from replay_service.gateway.sample_models import SampleHistory, SamplePage
from replay_service.gateway.service import Service
from replay_service.ledger.samples import SAMPLE_ORDERS

router = APIRouter(prefix="/v1/runs/{run}/samples", tags=["statistics"], route_class=StrictRoute)

_ORDERS = ", ".join(SAMPLE_ORDERS)
_Text = Annotated[bool, Query(description="Also tell the samples as text.")]


@router.get("", operation_id="list_samples", dependencies=READ, responses=responses(404, 422))
def list_samples(
    run: RunName,
    service: Service,
    order: Annotated[str, Query(description=f"One of {_ORDERS}; a minus before it means descending.")] = "-damage",
    stratum: Annotated[int | None, Query(ge=0, le=2**31 - 1, description="Only samples of this stratum.")] = None,
    domain: Annotated[str | None, Query(description="Only samples of this domain (group of strata).")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Samples in a page.")] = 100,
    cursor: Annotated[str | None, Query(description="Where the page before ended.")] = None,
    text: _Text = False,
) -> SamplePage:
    """The rehearsed samples of a run, page by page; by default the most damaged first, by the run's own signal."""
    wanted = rehearsed_samples.Wanted(order, stratum, domain, limit, cursor, text)
    return rehearsed_samples.page_of(service, run, wanted)


@router.get("/{sample_id}", operation_id="get_sample", dependencies=READ, responses=responses(404, 422))
def get_sample(run: RunName, sample_id: int, service: Service, text: _Text = False) -> SampleHistory:
    """One rehearsed sample and its reports, oldest first."""
    return rehearsed_samples.history_of(service, run, sample_id, text)
