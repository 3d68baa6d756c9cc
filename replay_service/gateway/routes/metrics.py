"""Metrics, for Prometheus."""

from typing import Final

from fastapi import APIRouter, Request, Response

from replay_service.gateway.metrics.scrape import Scraper
from replay_service.gateway.middleware.access import READ, RequestAccess
from replay_service.gateway.routes.strict import StrictRoute

router = APIRouter(tags=["metrics"], route_class=StrictRoute)

TEXT_FORMAT: Final = "text/plain; version=0.0.4; charset=utf-8"


@router.get(
    "/metrics",
    operation_id="get_metrics",
    dependencies=READ,
    response_class=Response,
    responses={200: {"content": {TEXT_FORMAT: {"schema": {"type": "string"}}}, "description": "Series of metrics."}},
)
def get_metrics(request: Request, access: RequestAccess) -> Response:
    """The metrics of the service, of all its processes together, in the text format of Prometheus.

    A token for some runs sees series of these runs alone. Estimates of forgetting are made in the background while
    somebody scrapes: they are missing in the first answers.
    """
    scraper: Scraper = request.app.state.scraper
    return Response(scraper.text(access.caller.may_touch), media_type=TEXT_FORMAT)
