"""The journal: runs and their events, in the order in which they happened."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Engine, Row, func, insert, select
from sqlalchemy.exc import IntegrityError

from replay_service.errors import RunExists, UnknownRun
from replay_service.ledger.schema import events, runs
from replay_service.sampling.events import PLANNED_ROW, REPORTED_ROW, Event, Planned, Reported
from replay_service.sampling.run_config import RunConfig


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as it was created."""

    run: str
    corpus: str
    generation: int
    config: RunConfig
    created_at: str


class Journal:
    """Every method that writes returns after its commit."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create_run(self, record: RunRecord) -> None:
        """Write down a new run.

        Raises:
            RunExists: when the name is taken.
        """
        values = {
            "run": record.run,
            "corpus": record.corpus,
            "generation": record.generation,
            "config": record.config.to_json(),
            "created_at": record.created_at,
        }
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(runs).values(values))
        except IntegrityError:
            raise RunExists(f"run {record.run!r} exists already; choose another name") from None

    def runs(self) -> list[RunRecord]:
        with self._engine.connect() as connection:
            return [_record(row) for row in connection.execute(select(runs).order_by(runs.c.run))]

    def run(self, name: str) -> RunRecord:
        with self._engine.connect() as connection:
            row = connection.execute(select(runs).where(runs.c.run == name)).first()
        if row is None:
            raise UnknownRun(f"there is no run {name!r}; GET /v1/runs lists them, POST /v1/runs creates one")
        return _record(row)

    def append(self, run: str, first_seq: int, new: Sequence[Event]) -> None:
        """Commit the events `new`, numbered from `first_seq`, in one transaction.

        A number that is taken means that somebody else writes this run: the transaction fails and nothing is kept.
        """
        values = [{"run": run, "seq": first_seq + i, **_columns(each)} for i, each in enumerate(new)]
        with self._engine.begin() as connection:
            connection.execute(insert(events), values)

    def events(self, run: str) -> Iterator[Event]:
        """All events of a run, oldest first, read in a stream."""
        query = select(events).where(events.c.run == run).order_by(events.c.seq)
        with self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=1000).execute(query):
                yield _event(row)

    def planned(self, run: str, first_step: int, num_steps: int) -> list[Planned]:
        """The plans of a window of steps, in step order; steps without a plan are left out."""
        query = (
            select(events)
            .where(events.c.run == run, events.c.kind == "planned")
            .where(events.c.step.between(first_step, first_step + num_steps - 1))
            .order_by(events.c.step)
        )
        with self._engine.connect() as connection:
            return [_planned(row) for row in connection.execute(query)]

    def num_events(self, run: str) -> int:
        with self._engine.connect() as connection:
            query = select(func.count()).select_from(events).where(events.c.run == run)
            return connection.execute(query).scalar_one()


def _record(row: Row[tuple[object, ...]]) -> RunRecord:
    return RunRecord(row.run, row.corpus, row.generation, RunConfig.from_json(row.config), row.created_at)


def _columns(event: Event) -> dict[str, object]:
    if isinstance(event, Planned):
        kind, policy_version, rank = "planned", event.policy_version, None
    else:
        kind, policy_version, rank = "reported", None, event.rank
    return {
        "kind": kind,
        "step": event.step,
        "policy_version": policy_version,
        "rank": rank,
        "rows": event.rows.tobytes(),
    }


def _event(row: Row[tuple[object, ...]]) -> Event:
    if row.kind == "planned":
        return _planned(row)
    return Reported(row.step, row.rank, np.frombuffer(row.rows, dtype=REPORTED_ROW))


def _planned(row: Row[tuple[object, ...]]) -> Planned:
    return Planned(row.step, row.policy_version, np.frombuffer(row.rows, dtype=PLANNED_ROW))
