"""Losses: what trainers measured of the samples they rehearsed."""

from dataclasses import asdict
from typing import Any

import numpy as np
from fastapi import APIRouter
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from replay_service.errors import InvalidReport, UnsupportedMediaType
from replay_service.gateway.logs import bind_work
from replay_service.gateway.middleware.problems import responses
from replay_service.gateway.models import LossReport, LossRow, ReportResult
from replay_service.gateway.routes.raw import RawRoute, described, media_type, parsed, run_of
from replay_service.gateway.service import ReplayService
from replay_service.wire.decoding import Heads
from replay_service.wire.losses import GAINS_NOT_TOLD, LOSS_ROW, LOSSES_SCHEMA, decode_losses
from replay_service.wire.protocol import ARROW_STREAM

router = APIRouter(prefix="/v1/runs/{run}", tags=["losses"], route_class=RawRoute)

_SCHEMA = LossReport.model_json_schema()
_SCHEMA["properties"]["rows"]["items"] = _SCHEMA.pop("$defs")["LossRow"]
_BODIES: dict[str, Any] = {
    "application/json": _SCHEMA,
    ARROW_STREAM: {"type": "string", "format": "binary"},
}


@router.post(
    "/losses",
    operation_id="report_losses",
    response_model=ReportResult,
    responses=responses(404, 422, 503),
    openapi_extra=described("train", _BODIES),
)
async def report_losses(request: Request) -> Response:
    """Report the losses of rehearsed samples, all of them or none: the answer comes when they are durable.

    A row that was reported before counts once. Rows of a step that the run no longer waits for are counted as
    rejected. A row that cannot be right (a loss that is not finite, a sample that was not planned) refuses the report.
    """
    run, type_, body = run_of(request, "train"), media_type(request), await request.body()
    # A large body takes long to decode, and other requests need not wait for that.
    content = await run_in_threadpool(_take_in, request, run, type_, body)
    return Response(content, media_type="application/json")


def _take_in(request: Request, run: str, type_: str, body: bytes) -> bytes:
    """Take in what is reported of a run; a ReportResult as JSON."""
    service: ReplayService = request.app.state.service
    rows = _rows(type_, body, service.heads)
    if len(rows):
        bind_work(request.scope, rank=int(rows["rank"][0]), step=int(rows["step"][0]))
    return to_json(asdict(service.owners.get(run).report(rows)))


def _record(row: LossRow) -> tuple[object, ...]:
    """The fields of a LOSS_ROW, in their order."""
    told = row.model_dump()
    if row.num_gains is None:
        told["num_gains"] = GAINS_NOT_TOLD
    return tuple(told[name] for name in LOSSES_SCHEMA.names)


def _rows(type_: str, body: bytes, heads: Heads) -> np.ndarray:
    if type_ == "application/json":
        rows = parsed(LossReport, body).rows
        return np.array([_record(row) for row in rows], dtype=LOSS_ROW)
    if type_ == ARROW_STREAM:
        try:
            return decode_losses(body, heads)
        except ValueError as error:
            raise InvalidReport(str(error)) from error
    raise UnsupportedMediaType(f"losses come as application/json or as {ARROW_STREAM}, not as {type_ or 'nothing'}")
