"""The page of the list of runs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from replay_service.errors import ReplayError
from replay_service.gateway.middleware.access import READ, RequestAccess
from replay_service.gateway.models import RunSummary
from replay_service.gateway.packed import Packed
from replay_service.gateway.page.rendering import answer, html_for
from replay_service.gateway.page.routing import PageRoute
from replay_service.gateway.routes.runs import list_runs
from replay_service.gateway.service import ReplayService, Service
from replay_service.gateway.statistics import stats_at_hand
from replay_service.gateway.statistics_models import RunStats
from replay_service.gateway.times import now_of
from replay_service.gateway.watched import OLDEST_S, SHARED_AGE_S
from replay_service.ledger.lifecycle import LIFECYCLES
from replay_service.ledger.readers import MOST_RUNS_KEPT

router = APIRouter(include_in_schema=False, route_class=PageRoute)

RUNS_SHOWN: Final = 50

_STATISTICS_AGE_S: Final = 15.0
"""Age of the statistics in the list: to estimate those of many runs takes long."""
_MAKING_S: Final = 0.3
"""After a start nothing is at hand. The list does not wait for all: it has the rest when it is asked for again."""
_LONGEST_KEPT_S: Final = 300.0
"""Age of those of one run while those of others are made."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run in the list; its statistics, or why they are not known."""

    run: RunSummary
    stats: RunStats | None = None
    problem: str | None = None


@router.get("/", dependencies=READ)
def show_runs(
    request: Request,
    service: Service,
    access: RequestAccess,
    state: Annotated[str | None, Query()] = None,
    after: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """The runs that the caller may see, by name. Who looks on is given what others with the same rights are given."""

    def made() -> Packed:
        found = list_runs(service, access, state, RUNS_SHOWN, after)
        return html_for(
            request,
            "runs.html",
            rows=_rows(service, found.runs),
            states=LIFECYCLES,
            wanted=state,
            after=after,
            next=found.next,
            address=request.url.path + (f"?{request.url.query}" if request.url.query else ""),
            now=now_of(service.clock()),
        )

    name = f"runs {access.caller} {state} {after}"
    is_again = "hx-request" in request.headers
    shared = service.watched.fragments
    html = shared.get(name, SHARED_AGE_S, made, OLDEST_S) if is_again else shared.get(name, 0.0, made)
    return answer(request, html)


def _rows(service: ReplayService, runs: Sequence[RunSummary]) -> list[RunRow]:
    """Those that were active last have their statistics: so many runs are kept ready to be looked at."""
    latest = sorted(runs, key=lambda each: each.last_plan_at or "", reverse=True)[:MOST_RUNS_KEPT]
    ends_at = time.monotonic() + _MAKING_S
    found = {each.run: _row(service, each) for each in latest if time.monotonic() < ends_at}
    return [found.get(each.run) or RunRow(each) for each in runs]


def _row(service: ReplayService, run: RunSummary) -> RunRow:
    try:
        return RunRow(run, stats_at_hand(service, run.run, _STATISTICS_AGE_S, _LONGEST_KEPT_S))
    except ReplayError as error:  # one run that cannot be read hides no other
        return RunRow(run, problem=error.detail)
