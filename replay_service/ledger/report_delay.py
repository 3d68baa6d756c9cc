"""The delay of reports: how long after its plan a step was reported, and which steps have waited too long."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from replay_service.ledger.event_times import EventTime, EventTimes
from replay_service.ledger.progress import Point

LOOKED_AT: Final = 1000
"""How many of the latest events tell of delays."""
LATE_DELAYS: Final = 2.0
"""A step is late when it has waited for so many times the 95th percentile of the recent delays."""
LEAST_LATE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class ReportDelay:
    """The time from the commit of a step's plan to that of its last report.

    Attributes:
        p50_s, p95_s: median and 95th percentile of the steps that were lately reported whole, seconds; None if there
            are none.
        late_steps: steps that still await a report, and have waited for more than a minute and more than twice `p95_s`;
            with those that were given up since the last report came.
    """

    p50_s: float | None
    p95_s: float | None
    late_steps: int


def report_delay(times: EventTimes, run: str, point: Point, pending: Sequence[int], now_ms: int) -> ReportDelay:
    """The delay of a run's reports at a point of its journal.

    Args:
        pending: the steps that await a report there, ascending.
        now_ms: the time, in milliseconds since 1970.
    """
    events = times.latest(run, point.end_seq, LOOKED_AT)
    delays = delays_of(events, set(pending))
    p50_s, p95_s = np.quantile(delays, [0.5, 0.95]).round(3).tolist() if delays else (None, None)
    latest_ms = now_ms - 1000.0 * max(LEAST_LATE_S, LATE_DELAYS * (p95_s or 0.0))
    # Standing plans are committed in the order of their steps, so few of them need to be looked up.
    late = bisect_right(pending, latest_ms, key=lambda step: times.planned_at(run, point, step))
    return ReportDelay(p50_s, p95_s, late + len(unanswered_by(events, latest_ms) - set(pending)))


def unanswered_by(events: Iterable[EventTime], latest_ms: float) -> set[int]:
    """The steps that were planned up to a time, and after the last report among these events, which are oldest first.

    A job that is fast leaves them behind within the window of its reports, so that nobody awaits them any more.
    """
    found = set[int]()
    for kind, step, at, has_rows in events:
        if kind == "reported":
            found = set()
        elif kind == "rewound":
            found = {each for each in found if each <= step}
        elif has_rows and at is not None and at <= latest_ms:
            found.add(step)
    return found


def delays_of(events: Iterable[EventTime], pending: set[int]) -> list[float]:
    """The delay of each step whose plan and reports are among these events, oldest first, and whole; seconds."""
    planned, reported = dict[int, int](), dict[int, int]()
    for kind, step, at, _ in events:
        if kind == "rewound":
            planned = {each: time for each, time in planned.items() if each <= step}
            reported = {each: time for each, time in reported.items() if each <= step}
        elif at is not None:
            (planned if kind == "planned" else reported)[step] = at
    whole = planned.keys() & reported.keys() - pending
    return [max(0, reported[step] - planned[step]) / 1000.0 for step in sorted(whole)]
