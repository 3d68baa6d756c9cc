"""Statistics of samples at a committed point of a journal: they catch up with it when somebody asks."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from typing import Final

import numpy as np
from sqlalchemy import Connection, Engine, Row, Select, select

from replay_service.ledger import samples
from replay_service.ledger.event_rows import reported_rows
from replay_service.ledger.progress import Point
from replay_service.ledger.samples import DamageUnit, SampleQuery, SampleStatistics
from replay_service.ledger.schema import IS_RARE, events
from replay_service.sampling.events import Reported
from replay_service.sampling.partition import Partition

CATCH_UP_EVENTS: Final = 100
"""Events whose reports are merged in one transaction. Until it ends, commits of an SQLite database wait."""


@dataclass(frozen=True, slots=True)
class SamplePage:
    """Some samples of a run, after its events up to `as_of`."""

    as_of: int
    samples: list[SampleStatistics]


@dataclass(frozen=True, slots=True)
class SampleVisits:
    """One sample and its reports, oldest first, after the run's events up to `as_of`.

    A visit that could not be measured counts in neither.
    """

    as_of: int
    statistics: SampleStatistics
    reports: list[Reported]


class SampleReader:
    """Reads the statistics of samples, and brings them up to date before. It needs no lease of the run.

    Args:
        point: the end of a run's journal; raises UnknownRun.
        monotonic: a clock, seconds.
    """

    def __init__(
        self, engine: Engine, point: Callable[[str], Point], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._point = point
        self._monotonic = monotonic
        self._is_sqlite = engine.dialect.name == "sqlite"

    def page(self, run: str, query: SampleQuery, partition: Partition, work_s: float = inf) -> SamplePage:
        """Measurements of a run's samples: one page.

        Args:
            work_s: for how long to catch up, seconds. A look that ends before all is merged tells of the events so
                far, and the next one goes on from there.
        """
        with self._caught_up(run, partition, work_s) as (connection, next_seq):
            return SamplePage(next_seq - 1, samples.page(connection, run, query))

    def one(self, run: str, sample_id: int, partition: Partition, unit: DamageUnit) -> SampleVisits | None:
        """Measurements of one sample and its reports; None if there are none."""
        with self._caught_up(run, partition) as (connection, next_seq):
            found = samples.one(connection, run, sample_id, unit)
            if found is None:
                return None
            query = _events_before(run, next_seq).where(
                events.c.kind == "reported", events.c.step.between(found.first_step, found.last_step)
            )
            reports = _standing_reports(connection, run, next_seq, connection.execute(query))
        visits = [replace(each, rows=_measured(each.rows, sample_id)) for each in reports]
        return SampleVisits(next_seq - 1, found, [each for each in visits if len(each.rows)])

    @contextmanager
    def _caught_up(self, run: str, partition: Partition, work_s: float = inf) -> Iterator[tuple[Connection, int]]:
        """A connection whose reads see one committed point, and the number of the first event that the samples do not
        hold there. They hold every event that was committed before this was called, if there was time for that."""
        ends_at = self._monotonic() + work_s
        while True:
            wanted = self._point(run).end_seq
            self._catch_up(run, partition, ends_at)
            with self._at_one_point() as connection:
                next_seq = samples.next_seq(connection, run)
                # Of a run that was rewound or created again meanwhile they hold nothing, or less.
                if next_seq is not None and (next_seq >= wanted or self._monotonic() >= ends_at):
                    yield connection, next_seq
                    return

    @contextmanager
    def _at_one_point(self) -> Iterator[Connection]:
        """A connection whose reads all see what was committed at the first of them."""
        with self._engine.connect() as connection:
            if self._is_sqlite:
                connection.exec_driver_sql("BEGIN")  # its driver begins no transaction for a query
            else:
                connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    def _catch_up(self, run: str, partition: Partition, ends_at: float) -> None:
        """Bring the samples up to date, some events at a time, so that nobody waits long for the database."""
        more = True
        while more:
            with self._engine.begin() as connection:
                held = samples.hold(connection, run)
                # Looked at while nobody else merges: a rewind that comes later makes the samples begin anew.
                point = self._point(run)
                first_seq = samples.continued(connection, run, held, point.attempt)
                query = _events_before(run, point.end_seq).where(events.c.seq >= first_seq).limit(CATCH_UP_EVENTS)
                rows = connection.execute(query).all()
                reports = _standing_reports(connection, run, point.end_seq, rows)
                samples.merge(connection, run, reports, partition, first_seq + len(rows))
            more = len(rows) == CATCH_UP_EVENTS and self._monotonic() < ends_at


def _events_before(run: str, end_seq: int) -> Select[tuple[object, ...]]:
    return select(events).where(events.c.run == run, events.c.seq < end_seq).order_by(events.c.seq)


def _standing_reports(
    connection: Connection, run: str, end_seq: int, rows: Iterable[Row[tuple[object, ...]]]
) -> list[Reported]:
    """The reports among rows of `events` that no rewind before the event `end_seq` has taken back."""
    rewound = (events.c.run == run, events.c.kind == "rewound", events.c.seq < end_seq, IS_RARE)
    rewinds = connection.execute(select(events.c.seq, events.c.step).where(*rewound)).all()
    return [
        Reported(row.step, row.rank, reported_rows(row.payload))
        for row in rows
        if row.kind == "reported" and all(row.step <= step for seq, step in rewinds if seq > row.seq)
    ]


def _measured(rows: np.ndarray, sample_id: int) -> np.ndarray:
    """Measurements of one sample, REPORTED_ROW [0 or 1]."""
    measured: np.ndarray = rows[(rows["sample_id"] == sample_id) & (rows["num_tokens"] > 0)]
    return measured
