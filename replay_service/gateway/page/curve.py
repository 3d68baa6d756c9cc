"""The curve of a run's forgetting in words and in a short table, for who does not see the drawing."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from replay_service.gateway.curve_models import ForgettingCurves
from replay_service.gateway.curves import Stretch, curves_of
from replay_service.gateway.page import words
from replay_service.gateway.service import ReplayService

MOST_ROWS: Final = 25
MOST_POINTS: Final = 300
WORK_S: Final = 0.2
"""A page does not wait for the curve of a long run: it shows how far that is, and asks again."""

_DIGITS: Final = 4
"""Of nats, after the point: more is never seen, and weighs."""


@dataclass(frozen=True, slots=True)
class CurveRow:
    """One point of a curve; nats per token."""

    step: int
    nats: float
    low: float
    high: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class CurveInWords:
    """A curve's result in a sentence or two, and its points.

    Attributes:
        is_whole: False: of a long run, the curve ends early so far.
    """

    result: str
    rows: Sequence[CurveRow]
    is_whole: bool


def curve_in_words(service: ReplayService, run: str) -> CurveInWords:
    """The forgetting of a run's corpus along its steps, in at most 25 rows."""
    found = curves_of(service, run, Stretch(num_points=MOST_ROWS), work_s=WORK_S)
    rows = list(_known(found))
    return CurveInWords(_result(rows, found.budget_nats), rows, found.is_whole)


def curve_points(service: ReplayService, run: str, domain: str | None) -> bytes:
    """What the drawing of a curve is made of: `ForgettingCurves` as JSON, rounded; with a domain's, if named."""
    found = curves_of(service, run, Stretch(num_points=MOST_POINTS), domain=domain, work_s=WORK_S).model_dump()
    for curve in (found["corpus"], *found["domains"]):
        for name in ("nats", "low", "high", "least_nats", "most_nats"):
            curve[name] = [None if each is None else round(each, _DIGITS) for each in curve[name]]
    return json.dumps(found, separators=(",", ":")).encode()


def _known(found: ForgettingCurves) -> Iterator[CurveRow]:
    """Those points of which something can be said."""
    curve = found.corpus
    columns = curve.step, curve.nats, curve.low, curve.high, curve.least_nats, curve.most_nats
    for step, *values in zip(*columns, strict=True):
        known = [each for each in values if each is not None]
        if len(known) == len(values):
            yield CurveRow(step, *known)


def _result(rows: Sequence[CurveRow], budget_nats: float | None) -> str:
    if not rows:
        return "No step has enough reports for an estimate yet."
    first, last, top = rows[0], rows[-1], max(rows, key=lambda each: each.most)
    said = (
        f"At step {words.count(last.step)} the corpus is forgotten by {words.nats(last.nats)} nats per token, between "
        f"{words.nats(last.low)} and {words.nats(last.high)}; at step {words.count(first.step)} it was "
        f"{words.nats(first.nats)}, and the most was {words.nats(top.most)} by step {words.count(top.step)}."
    )
    return said if budget_nats is None else f"{said} {_against_budget(rows, budget_nats)}"


def _against_budget(rows: Sequence[CurveRow], budget_nats: float) -> str:
    budget = words.loss(budget_nats)
    if rows[-1].low <= budget_nats:
        return f"It is not surely above the budget of {budget}."
    within = [i for i, each in enumerate(rows) if each.low <= budget_nats]
    since = rows[within[-1] + 1] if within else rows[0]
    return f"It has been above the budget of {budget} since step {words.count(since.step)}."
