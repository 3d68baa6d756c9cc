"""The parts of a run's page, which are asked for again and again, and shared by all who look at the run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from replay_service.errors import ReplayError
from replay_service.gateway.following import PROGRESS
from replay_service.gateway.packed import Packed
from replay_service.gateway.page.curve import curve_in_words, curve_points
from replay_service.gateway.page.rendering import answer, html_of
from replay_service.gateway.page.run_log import run_log
from replay_service.gateway.page.strata_map import damage_map, draws_map
from replay_service.gateway.recent_answers import RecentAnswers
from replay_service.gateway.rehearsed_samples import Wanted, page_of
from replay_service.gateway.service import ReplayService
from replay_service.gateway.statistics import stats_of, strata_of
from replay_service.gateway.statistics_models import ForgettingEstimate, RunStats
from replay_service.gateway.times import now_of
from replay_service.gateway.watched import OLDEST_S, SHARED_AGE_S, Watched
from replay_service.ledger.event_log import KINDS

DOMAINS_SHOWN: Final = 40
SAMPLES_SHOWN: Final = 15
SAMPLES_WORK_S: Final = 0.5
"""For how long one look takes in reports of samples, so that no watcher costs a job much; the next one goes on."""
CURVES_OFFERED: Final = 12

_FOLLOWED: Final = " ".join((PROGRESS, *KINDS))
"""The kinds of server-sent events that bring something new."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a run's page.

    Attributes:
        context: what its template shows.
        answers: where those that were made lately are.
        age_s: of what watchers share, as long as that costs little.
    """

    template: str
    context: Callable[[ReplayService, RunStats], dict[str, Any]]
    answers: Callable[[Watched], RecentAnswers[Packed]]
    age_s: float


def answer_with(part: Part, request: Request, service: ReplayService, run: str) -> Response:
    """A part of the page of a run, as it was a second ago, or a little longer if many parts are watched."""

    def made() -> Packed:
        return html_of(part.template, **part.context(service, stats_of(service, run, SHARED_AGE_S)))

    return answer(request, _shared(part.answers(service.watched), service, run, part.template, part.age_s, made))


def points_of(service: ReplayService, run: str, domain: str | None) -> Packed:
    """What the drawing of a run's curve is made of, with that of a domain."""

    def made() -> Packed:
        return Packed("application/json", curve_points(service, run, domain))

    return _shared(service.watched.curves, service, run, f"points {domain}", SHARED_AGE_S, made)


def _shared(
    answers: RecentAnswers[Packed],
    service: ReplayService,
    run: str,
    name: str,
    age_s: float,
    make: Callable[[], Packed],
) -> Packed:
    return answers.get(_key(service, run, name), age_s, make, max(age_s, OLDEST_S))


def _key(service: ReplayService, run: str, name: str) -> str:
    """Another run of the name has other parts, and so has the run after a rewind. Raises UnknownRun."""
    point = service.journal.point(run)
    return f"{run} {point.incarnation} {point.attempt} {name}"


def whole_page(service: ReplayService, run: str) -> dict[str, Any]:
    """What all parts show now. From here on nobody is given parts that are older."""
    for part in PARTS:
        part.answers(service.watched).forget(_key(service, run, part.template))
    stats = stats_of(service, run)
    context: dict[str, Any] = {}
    for part in PARTS:
        context |= part.context(service, stats)
    return context


def _live(service: ReplayService, stats: RunStats) -> dict[str, Any]:
    log = run_log(service, stats.run, stats.as_of)
    domains = _worst_first(stats)
    shown = domains[:DOMAINS_SHOWN]
    ends = [end for _, each in shown for end in (each.low, each.high) if end is not None]
    return {
        "stats": stats,
        "now": now_of(service.clock()),
        "events": log.events,
        "kinds": _FOLLOWED,
        "speed": log.steps_per_s if stats.state in ("running", "damaged") else None,
        "domains": shown,
        "num_more_domains": len(domains) - len(shown),
        "least": min([*ends, -0.01]),
        "most": max([*ends, 0.01]),
        "most_share": max(
            (max(each.draw_share, each.size_share) for each in stats.shares_by_domain.values()), default=1.0
        ),
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
        wanted = Wanted(limit=SAMPLES_SHOWN, text=True, work_s=SAMPLES_WORK_S)
        context["samples"] = page_of(service, stats.run, wanted)
    except ReplayError as error:  # the corpus is away; the page says so in this place
        context["problem"] = error.detail
    return context


LIVE: Final = Part("run_live.html", _live, lambda watched: watched.fragments, 1.0)
CURVE: Final = Part("run_curve.html", _curve, lambda watched: watched.curves, 1.0)
STRATA: Final = Part("run_strata.html", _strata, lambda watched: watched.fragments, 15.0)
PARTS: Final = (LIVE, CURVE, STRATA)
