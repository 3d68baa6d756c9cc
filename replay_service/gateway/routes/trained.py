"""Trained rows: counts of what the ranks of a job have trained on."""

from fastapi import APIRouter, Request

from replay_service.gateway.logs import bind_work
from replay_service.gateway.middleware.access import TRAIN, RunName
from replay_service.gateway.middleware.problems import responses
from replay_service.gateway.models import TrainedReport, TrainedResult
from replay_service.gateway.service import Service
from replay_service.sampling.events import Trained
from replay_service.sampling.trained import TrainedCounts

router = APIRouter(prefix="/v1/runs/{run}", tags=["losses"])


@router.post("/trained", operation_id="report_trained", dependencies=TRAIN, responses=responses(404, 413, 422))
def report_trained(run: RunName, body: TrainedReport, service: Service, request: Request) -> TrainedResult:
    """Report what a rank has trained on in some steps; the answer comes when it is durable.

    The service plans rehearsed rows and never sees the others, so only these reports tell the ratio that was trained.
    Each rank reports its steps once, in order. A report that begins with a step that was reported before is not
    counted, so a report may be repeated.
    """
    bind_work(request.scope, rank=body.rank, step=body.first_step)
    counts = TrainedCounts(body.num_rows, body.num_rehearsed_rows, body.num_tokens, body.num_rehearsed_tokens)
    trained = Trained(body.next_step - 1, body.rank, body.first_step, counts)
    return TrainedResult(counted=service.owners.get(run).count_trained(trained, body.attempt))
