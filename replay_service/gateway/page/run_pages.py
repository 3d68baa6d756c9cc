"""Pages about runs: the list of them, and one run."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from replay_service.errors import ReplayError
from replay_service.gateway.following import PROGRESS
from replay_service.gateway.middleware.access import READ, Access, RequestAccess, RunName
from replay_service.gateway.models import RunInfo, RunSummary
from replay_service.gateway.page.actions import actions_on, may_change
from replay_service.gateway.page.assets import packed
from replay_service.gateway.page.curve import curve_in_words, curve_points
from replay_service.gateway.page.rendering import render
from replay_service.gateway.page.routing import PageRoute
from replay_service.gateway.page.run_log import run_log
from replay_service.gateway.page.strata_map import damage_map, draws_map
from replay_service.gateway.rehearsed_samples import Wanted, page_of
from replay_service.gateway.routes.runs import get_run, list_runs
from replay_service.gateway.service import ReplayService, Service
from replay_service.gateway.statistics import stats_of, strata_of
from replay_service.gateway.statistics_models import ForgettingEstimate, RunStats
from replay_service.ledger.event_log import KINDS
from replay_service.ledger.lifecycle import LIFECYCLES
from replay_service.ledger.readers import MOST_RUNS_KEPT

router = APIRouter(include_in_schema=False, route_class=PageRoute)

RUNS_SHOWN: Final = 50
DOMAINS_SHOWN: Final = 40
SAMPLES_SHOWN: Final = 15
CURVES_OFFERED: Final = 12

_WATCHED_AGE_S: Final = 1.0
"""Age of the statistics that watchers of one run share: each fragment would estimate them anew."""

_FOLLOWED: Final = " ".join((PROGRESS, *KINDS))
"""The kinds of server-sent events that bring something new."""


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
    """The runs that the caller may see, by name."""
    found = list_runs(service, access, state, RUNS_SHOWN, after)
    return render(
        request,
        "runs.html",
        rows=_rows(service, found.runs),
        states=LIFECYCLES,
        wanted=state,
        after=after,
        next=found.next,
        address=request.url.path + (f"?{request.url.query}" if request.url.query else ""),
        now=_now(service),
    )


def _rows(service: ReplayService, runs: Sequence[RunSummary]) -> list[RunRow]:
    """Those that were active last have their statistics: so many runs are kept ready to be looked at."""
    latest = sorted(runs, key=lambda each: each.last_plan_at or "", reverse=True)
    looked_at = {each.run for each in latest[:MOST_RUNS_KEPT]}
    return [_row(service, each) if each.run in looked_at else RunRow(each) for each in runs]


def _row(service: ReplayService, run: RunSummary) -> RunRow:
    try:
        return RunRow(run, stats_of(service, run.run, _WATCHED_AGE_S))
    except ReplayError as error:  # one run that cannot be read hides no other
        return RunRow(run, problem=error.detail)


@router.get("/runs/{run}", dependencies=READ)
def show_run(request: Request, run: RunName, service: Service, access: RequestAccess) -> Response:
    """One run: what to look at, how it does, and what can be changed."""
    info = get_run(run, service)
    stats = stats_of(service, run)
    context = _live(service, stats) | _curve(service, stats) | _strata(service, stats) | _changes(info, access)
    return render(request, "run.html", info=info, **context)


@router.get("/runs/{run}/live", dependencies=READ)
def show_live(request: Request, run: RunName, service: Service) -> Response:
    """The part of a run's page that changes with every step."""
    return render(request, "run_live.html", **_live(service, stats_of(service, run, _WATCHED_AGE_S)))


@router.get("/runs/{run}/curve", dependencies=READ)
def show_curve(request: Request, run: RunName, service: Service) -> Response:
    """The part of a run's page that tells how its forgetting went."""
    return render(request, "run_curve.html", **_curve(service, stats_of(service, run, _WATCHED_AGE_S)))


@router.get("/runs/{run}/curve-points", dependencies=READ)
def give_curve_points(
    request: Request, run: RunName, service: Service, domain: Annotated[str | None, Query(max_length=1000)] = None
) -> Response:
    """What the drawing is made of."""
    return packed(request, curve_points(service, run, domain), "application/json", {"Vary": "Accept-Encoding"})


@router.get("/runs/{run}/strata", dependencies=READ)
def show_strata(request: Request, run: RunName, service: Service) -> Response:
    """The part of a run's page that tells of strata and samples."""
    return render(request, "run_strata.html", **_strata(service, stats_of(service, run, _WATCHED_AGE_S)))


def _live(service: ReplayService, stats: RunStats) -> dict[str, Any]:
    log = run_log(service, stats.run, stats.as_of)
    domains = _worst_first(stats)
    shown = domains[:DOMAINS_SHOWN]
    ends = [end for _, each in shown for end in (each.low, each.high) if end is not None]
    return {
        "stats": stats,
        "now": _now(service),
        "events": log.events,
        "kinds": _FOLLOWED,
        "speed": log.steps_per_s if stats.state == "running" else None,
        "domains": shown,
        "num_more_domains": len(domains) - len(shown),
        "least": min([*ends, -0.01]),
        "most": max([*ends, 0.01]),
    }


def _curve(service: ReplayService, stats: RunStats) -> dict[str, Any]:
    names = [name for name, _ in _worst_first(stats)[:CURVES_OFFERED]]
    return {"stats": stats, "curve": curve_in_words(service, stats.run), "offered": names}


def _worst_first(stats: RunStats) -> list[tuple[str, ForgettingEstimate]]:
    return sorted(stats.forgetting_by_domain.items(), key=lambda each: _least_known(each[1]), reverse=True)


def _least_known(found: ForgettingEstimate) -> float:
    """The lower end of what is forgotten; of what is not known, less than of all others."""
    return float("-inf") if found.low is None else found.low


def _strata(service: ReplayService, stats: RunStats) -> dict[str, Any]:
    context: dict[str, Any] = {"stats": stats, "maps": (), "samples": None, "problem": None}
    try:
        strata = strata_of(service, stats.run).strata
        context["maps"] = damage_map(strata), draws_map(strata)
        context["samples"] = page_of(service, stats.run, Wanted(limit=SAMPLES_SHOWN, text=True))
    except ReplayError as error:  # the corpus is away; the page says so in this place
        context["problem"] = error.detail
    return context


def _changes(info: RunInfo, access: Access) -> dict[str, Any]:
    return {"may_change": may_change(access), "actions": actions_on(info)}


def _now(service: ReplayService) -> datetime:
    return datetime.fromtimestamp(service.clock() / 1000, UTC)
