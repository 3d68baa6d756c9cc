"""Estimates made again from the journal of a service, from a part of the reports."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from replay_service.ledger import restoring
from replay_service.ledger.database import open_database
from replay_service.ledger.journal import Journal
from tests.evidence.tracked import Point


def since(root: Path, points: Sequence[Point], first_step: int) -> list[Point]:
    """The later points, their estimates made of first visits from `first_step` on alone; `root` is the service's."""
    journal = Journal(open_database(f"sqlite:///{root / 'journal.sqlite'}"))
    try:
        return [_since(journal, point, first_step) for point in points if point.step > first_step]
    finally:
        journal.close()


def _since(journal: Journal, point: Point, first_step: int) -> Point:
    visits = restoring.after_step(journal, journal.run(point.run), point.step - 1).first_visits().since(first_step)
    estimates = dict(zip(point.estimates, map(asdict, visits.of_domains()), strict=True))
    return replace(point, estimate=asdict(visits.of_corpus()), estimates=estimates)
