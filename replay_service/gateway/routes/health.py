"""Health: whether the process lives, and whether it can serve."""

from fastapi import APIRouter, Request

from replay_service.errors import Stopping
from replay_service.gateway.middleware.problems import responses
from replay_service.gateway.models import Health
from replay_service.gateway.readiness import Readiness

router = APIRouter(tags=["health"])


@router.get("/healthz", operation_id="healthz")
async def healthz() -> Health:
    """The process answers."""
    return Health(status="ok")


@router.get("/readyz", operation_id="readyz", responses=responses(503))
async def readyz(request: Request) -> Health:
    """The journal and the corpora can be reached, the disk is not full, and the service is not about to stop.

    The answer comes within two seconds, whatever the database does, and is at most a second old.
    """
    if request.app.state.is_stopping:
        raise Stopping("the service finishes what it has begun, and takes nothing new")
    readiness: Readiness = request.app.state.readiness
    await readiness.check()
    return Health(status="ok")
