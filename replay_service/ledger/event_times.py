"""When the events of a run were committed, without their content."""

from typing import Final, NamedTuple

from sqlalchemy import Engine, select

from replay_service.ledger.progress import Point
from replay_service.ledger.schema import events

_KINDS: Final = ("planned", "reported", "rewound")


class EventTime(NamedTuple):
    """An event's kind and step, and when it was committed: milliseconds since 1970, None if that is not known."""

    kind: str
    step: int
    at: int | None


class EventTimes:
    """Reads times of events. What it answers is of one point of a run's journal."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def latest(self, run: str, point: Point, most: int) -> list[EventTime]:
        """Plans, reports and rewinds among the last `most` events of a run, oldest first."""
        query = (
            select(events.c.kind, events.c.step, events.c.committed_at)
            .where(events.c.run == run, events.c.seq >= point.end_seq - most, events.c.seq < point.end_seq)
            .where(events.c.kind.in_(_KINDS))
            .order_by(events.c.seq)
        )
        with self._engine.connect() as connection:
            return [EventTime(*row) for row in connection.execute(query)]

    def planned_at(self, run: str, point: Point, step: int) -> int:
        """When the standing plan of a step was committed; 0 if that is not known."""
        query = (
            select(events.c.committed_at)
            .where(events.c.run == run, events.c.kind == "planned", events.c.step == step)
            .where(events.c.attempt <= point.attempt)
            .order_by(events.c.attempt.desc())
            .limit(1)
        )
        with self._engine.connect() as connection:
            return connection.execute(query).scalar_one_or_none() or 0
