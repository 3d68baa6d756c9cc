"""When the events of a run were committed, without their content."""

from typing import Final, NamedTuple

from sqlalchemy import Engine, func, select

from replay_service.ledger.progress import Point
from replay_service.ledger.schema import events

_KINDS: Final = ("planned", "reported", "rewound")


class EventTime(NamedTuple):
    """An event's kind and step, and when it was committed: milliseconds since 1970, None if that is not known.

    `has_rows` is False for plans of steps that rehearse nothing.
    """

    kind: str
    step: int
    at: int | None
    has_rows: bool = True


class EventTimes:
    """Reads times of events. What it answers is of one point of a run's journal."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def latest(self, run: str, end_seq: int, most: int) -> list[EventTime]:
        """Plans, reports and rewinds among the `most` events of a run before number `end_seq`, oldest first."""
        query = (
            select(events.c.kind, events.c.step, events.c.committed_at, func.length(events.c.payload) > 0)
            .where(events.c.run == run, events.c.seq >= end_seq - most, events.c.seq < end_seq)
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
