"""Losses: what trainers measured of the samples they rehearsed."""

from dataclasses import asdict
from typing import Any

import numpy as np
from fastapi import APIRouter
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from replay_service.errors import InvalidReport, UnsupportedMediaType
from replay_service.gateway.middleware.access import TRAIN, RunName
from replay_service.gateway.middleware.direct import media_type, whole_body
from replay_service.gateway.middleware.problems import responses
from replay_service.gateway.models import LossReport, ReportResult
from replay_service.gateway.wire.arrow import ARROW_STREAM, LOSSES_SCHEMA, decode_losses
from replay_service.ledger.owners import Owners
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
async def report_losses(run: RunName) -> ReportResult:
    """Report the losses of rehearsed samples, all of them or none: the answer comes when they are durable.

    A row that was reported before counts once. Rows of a step that the run no longer waits for are counted as
    rejected. A row that cannot be right (a loss that is not finite, a sample that was not planned) refuses the report.
    """
    raise AssertionError("`Direct` stands before the routes, and answers; this route describes it")


async def answer_losses(run: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a report; the application's state has its ReplayService, `service`."""
    body, found = await whole_body(receive), media_type(dict(scope["headers"]))
    owners: Owners = scope["app"].state.service.owners

    # A large body takes long to decode, and other requests need not wait for that.
    content = await run_in_threadpool(take_in, owners, run, found, body)
    await Response(content, media_type="application/json")(scope, receive, send)


def take_in(owners: Owners, run: str, content_type: str, body: bytes) -> bytes:
    """Take in what is reported of a run; a ReportResult as JSON."""
    rows = _decode(content_type, body)
    return to_json(asdict(owners.get(run).report(rows)))


def _decode(content_type: str, body: bytes) -> np.ndarray:
    if content_type == "application/json":
        rows = LossReport.model_validate_json(body).rows
        return np.array([tuple(getattr(row, name) for name in LOSSES_SCHEMA.names) for row in rows], dtype=LOSS_ROW)
    if content_type == ARROW_STREAM:
        try:
            return decode_losses(body)
        except ValueError as error:
            raise InvalidReport(str(error)) from error
    raise UnsupportedMediaType(
        f"losses come as application/json or as {ARROW_STREAM}, not as {content_type or 'nothing'}"
    )
