"""The page of one sample: its text, and its visits."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from replay_service.gateway.middleware.access import READ, RunName
from replay_service.gateway.page.rendering import render
from replay_service.gateway.page.routing import PageRoute
from replay_service.gateway.rehearsed_samples import history_of
from replay_service.gateway.service import Service

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/runs/{run}/samples/{sample_id}", dependencies=READ)
def show_sample(request: Request, run: RunName, sample_id: int, service: Service) -> Response:
    """One rehearsed sample: what it says, and its loss at each visit."""
    return render(request, "sample.html", run=run, sample=history_of(service, run, sample_id, text=True))
