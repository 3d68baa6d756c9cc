"""Health: whether the process lives, and whether it can serve."""

from fastapi import APIRouter, Request

from replay_service.errors import Stopping
from replay_service.gateway.middleware.problems import responses
from replay_service.gateway.models import Health
from replay_service.gateway.service import Service

router = APIRouter(tags=["health"])


@router.get("/healthz", operation_id="healthz")
def healthz() -> Health:
    """The process answers."""
    return Health(status="ok")


@router.get("/readyz", operation_id="readyz", responses=responses(503))
def readyz(request: Request, service: Service) -> Health:
    """The journal and the corpora can be read, and the service is not about to stop."""
    if request.app.state.is_stopping:
        raise Stopping("the service finishes what it has begun, and takes nothing new")
    service.journal.runs()
    service.corpora.names()
    return Health(status="ok")
