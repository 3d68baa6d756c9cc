"""Samples: what was measured of each one that was rehearsed."""

import base64
import json
import math
from dataclasses import asdict
from typing import Annotated, cast

from fastapi import APIRouter, Query

from replay_service.errors import InvalidRequest, UnknownSample
from replay_service.gateway.middleware.access import READ, RunName
from replay_service.gateway.middleware.problems import responses
from replay_service.gateway.models import MAX_INT64, SampleHistory, SampleInfo, SamplePage, SampleVisit
from replay_service.gateway.routes.strict import StrictRoute
from replay_service.gateway.service import Service
from replay_service.ledger.samples import SAMPLE_ORDERS, SampleOrder, SampleQuery
from replay_service.wire.losses import GAINS_NOT_TOLD

router = APIRouter(prefix="/v1/runs/{run}/samples", tags=["statistics"], route_class=StrictRoute)

_ORDERS = ", ".join(SAMPLE_ORDERS)


@router.get("", operation_id="list_samples", dependencies=READ, responses=responses(404, 422))
def list_samples(
    run: RunName,
    service: Service,
    order: Annotated[str, Query(description=f"One of {_ORDERS}; a minus before it means descending.")] = "-excess_loss",
    stratum: Annotated[int | None, Query(ge=0, le=2**31 - 1, description="Only samples of this stratum.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Samples in a page.")] = 100,
    cursor: Annotated[str | None, Query(description="Where the page before ended.")] = None,
) -> SamplePage:
    """The rehearsed samples of a run, the most damaged first, page by page."""
    corpus = service.corpus_of(service.journal.run(run))
    name = order.removeprefix("-")
    if name not in SAMPLE_ORDERS:
        raise InvalidRequest(f"order must be one of {_ORDERS}, or one of them with a minus, not {order!r}")
    after = None if cursor is None else _place(cursor)
    query = SampleQuery(cast(SampleOrder, name), order.startswith("-"), limit, stratum, after)
    found = service.journal.samples(run, query, corpus.partition)
    further = _cursor(query.place_of(found.samples[-1])) if len(found.samples) == limit else None
    samples = [SampleInfo(**asdict(each)) for each in found.samples]
    return SamplePage(run=run, as_of=found.as_of, samples=samples, cursor=further)


@router.get("/{sample_id}", operation_id="get_sample", dependencies=READ, responses=responses(404, 422))
def get_sample(run: RunName, sample_id: int, service: Service) -> SampleHistory:
    """One rehearsed sample and its reports, oldest first."""
    corpus = service.corpus_of(service.journal.run(run))
    found = service.journal.sample(run, sample_id, corpus.partition) if 0 <= sample_id <= MAX_INT64 else None
    if found is None:
        raise UnknownSample(f"nothing was reported of sample {sample_id} in run {run!r}; its samples can be listed")
    visits = [
        SampleVisit(
            step=each.step,
            rank=each.rank,
            loss_nats=float(each.rows["loss_nats"][0]),
            num_tokens=int(each.rows["num_tokens"][0]),
            num_flips=int(each.rows["num_flips"][0]),
            num_gains=_told(int(each.rows["num_gains"][0])),
        )
        for each in found.reports
    ]
    return SampleHistory(**asdict(found.statistics), as_of=found.as_of, visits=visits)


def _told(num_gains: int) -> int | None:
    return None if num_gains == GAINS_NOT_TOLD else num_gains


def _cursor(place: tuple[float, int]) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def _place(cursor: str) -> tuple[float, int]:
    try:
        value, sample_id = json.loads(base64.urlsafe_b64decode(cursor.encode()))
    except (ValueError, TypeError, RecursionError):
        value, sample_id = None, None
    is_value = type(value) in (int, float) and math.isfinite(value) and abs(value) <= MAX_INT64
    if not (is_value and type(sample_id) is int and 0 <= sample_id <= MAX_INT64):
        raise InvalidRequest("cursor is not one that an earlier page gave; leave it out to begin anew")
    return value, sample_id
