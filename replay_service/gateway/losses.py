"""Losses: what trainers measured of the samples they rehearsed."""

from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from replay_service.errors import InvalidReport, UnsupportedMediaType
from replay_service.gateway.access import TRAIN, RunName
from replay_service.gateway.models import LossReport, ReportResult
from replay_service.gateway.problems import invalid, responses
from replay_service.gateway.service import Service
from replay_service.gateway.wire import ARROW_STREAM, LOSSES_SCHEMA, decode_losses
from replay_service.ledger.intake import ReportOutcome
from replay_service.sampling.events import LOSS_ROW

router = APIRouter(prefix="/v1/runs/{run}", tags=["losses"])

_SCHEMA = LossReport.model_json_schema()
_SCHEMA["properties"]["rows"]["items"] = _SCHEMA.pop("$defs")["LossRow"]
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": _SCHEMA},
            ARROW_STREAM: {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@router.post(
    "/losses",
    operation_id="report_losses",
    dependencies=TRAIN,
    response_model=ReportResult,
    responses=responses(404, 413, 415, 422, 503),
    openapi_extra=_BODY,
)
async def report_losses(run: RunName, request: Request, service: Service) -> ReportResult | Response:
    """Report the losses of rehearsed samples, all of them or none: the answer comes when they are durable.

    A row that was reported before counts once. Rows of a step that the run no longer waits for are counted as
    rejected. A row that cannot be right (a loss that is not finite, a sample that was not planned) refuses the report.
    """
    content_type, body = request.headers.get("content-type", ""), await request.body()

    def take_in() -> ReportOutcome:
        rows = _decode(content_type, body)
        return service.owners.get(run).report(rows)

    try:
        # A large body takes long to decode, and other requests need not wait for that.
        outcome = await run_in_threadpool(take_in)
    except ValidationError as error:
        return invalid([{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)])
    return ReportResult(accepted=outcome.accepted, duplicate=outcome.duplicate, rejected=outcome.rejected)


def _decode(content_type: str, body: bytes) -> np.ndarray:
    media_type = content_type.split(";")[0].strip().lower()
    if media_type == "application/json":
        rows = LossReport.model_validate_json(body).rows
        return np.array([tuple(getattr(row, name) for name in LOSSES_SCHEMA.names) for row in rows], dtype=LOSS_ROW)
    if media_type == ARROW_STREAM:
        try:
            return decode_losses(body)
        except ValueError as error:
            raise InvalidReport(str(error)) from error
    raise UnsupportedMediaType(
        f"losses come as application/json or as {ARROW_STREAM}, not as {media_type or 'nothing'}"
    )
