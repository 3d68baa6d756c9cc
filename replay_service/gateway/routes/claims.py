"""Claims: which job uses a run."""

from fastapi import APIRouter, Request

from replay_service.gateway.claims import CLAIM_S
from replay_service.gateway.middleware.access import TRAIN, RunName, changes_nothing
from replay_service.gateway.middleware.problems import responses
from replay_service.gateway.models import ClaimRequest, ClaimResult, ReleaseRequest
from replay_service.gateway.routes.strict import StrictRoute
from replay_service.gateway.service import Service

router = APIRouter(prefix="/v1/runs/{run}", tags=["runs"], route_class=StrictRoute)


@router.post("/claim", operation_id="claim_run", dependencies=TRAIN, responses=responses(404, 409, 413, 422))
def claim_run(run: RunName, body: ClaimRequest, service: Service, request: Request) -> ClaimResult:
    """Say that a job uses the run, when it begins and about every 20 seconds; no other job begins with it then (409).

    Nothing else of the run depends on it. A claim that is not made again ends by itself. After a restart of the service
    the first job that makes a claim has it.
    """
    service.journal.run(run)
    if not service.claims.claim(run, body.job, body.take_over):
        changes_nothing(request.scope)
    return ClaimResult(valid_s=CLAIM_S)


@router.post("/release", operation_id="release_run", dependencies=TRAIN, responses=responses(404, 413, 422))
def release_run(run: RunName, body: ReleaseRequest, service: Service, request: Request) -> ClaimResult:
    """Say that a job no longer uses the run. The claim of another job stays."""
    service.journal.run(run)
    if not service.claims.release(run, body.job):
        changes_nothing(request.scope)
    return ClaimResult(valid_s=0.0)
