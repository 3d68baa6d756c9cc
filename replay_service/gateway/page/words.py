"""Numbers and times as pages write them."""

import math
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from replay_service.gateway.statistics_models import ForgettingEstimate
from replay_service.sampling.forgetting import LEAST_COVERED
from replay_service.sampling.lines import LEAST_REPORTS

UNKNOWN: Final = "-"
"""In the place of a number that is not known."""

_UNITS: Final = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
_NOW_S: Final = 2.0


def count(number: float | None) -> str:
    """A count with thousands apart: 10,000; rows that are due can be parts of one: 412.35."""
    if number is None:
        return UNKNOWN
    return f"{number:,}" if isinstance(number, int) else f"{number:,.2f}".rstrip("0").rstrip(".")


def nats(number: float | None) -> str:
    """A difference of losses, with its sign: +0.061."""
    return UNKNOWN if number is None else f"{number:+.3f}"


def loss(number: float | None) -> str:
    return UNKNOWN if number is None else f"{number:.3f}"


def unknown(found: ForgettingEstimate) -> str:
    """Why an estimate is not known, in short: of how many reports there are how many."""
    if found.num_effective < LEAST_REPORTS:
        # 5.99 of 6 must not be told as 6.
        return f"too few: {math.floor(10 * found.num_effective) / 10:.1f} of {LEAST_REPORTS:g} reports"
    return "reports of too few steps" if found.share_covered >= LEAST_COVERED else "not known"


def percent(share: float | None) -> str:
    """A share in percent, with two figures where it is small: 31 %, 4.5 %, 0.12 %."""
    if share is None:
        return UNKNOWN
    value = 100.0 * share
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.2g} %"


def rate(number: float | None) -> str:
    """How many a second, with two figures below ten: 240, 12, 0.93."""
    if number is None:
        return UNKNOWN
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def duration(seconds: float | None) -> str:
    """In the largest unit of which there are two: 20 ms, 10 s, 3 min, 47 h, 5 d."""
    if seconds is None:
        return UNKNOWN
    unit, length = next(((unit, length) for unit, length in _UNITS if seconds >= 2 * length), ("ms", 0.001))
    return f"{seconds / length:.0f} {unit}"


def ago(at: str | None, now: datetime) -> str:
    """How long ago a time was, in ISO 8601."""
    if at is None:
        return UNKNOWN
    seconds = (now - datetime.fromisoformat(at)).total_seconds()
    return "now" if seconds < _NOW_S else f"{duration(seconds)} ago"


def clock(at: str | None) -> str:
    """A time in ISO 8601 to the second, UTC: 2026-01-31 12:00:05."""
    return UNKNOWN if at is None else at[:19].replace("T", " ")


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    each.__name__: each for each in (count, nats, loss, unknown, percent, rate, duration, ago, clock)
}
