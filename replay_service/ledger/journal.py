"""The journal: runs, their events in the order in which they happened, and snapshots of their states."""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from sqlalchemy import Connection, Engine, Row, Select, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from replay_service.errors import RunExists, UnknownRun
from replay_service.ledger import samples
from replay_service.ledger.committer import Committer, Lease, run_taken
from replay_service.ledger.database import QuickLook
from replay_service.ledger.event_rows import columns_of, created_of, event_of, planned_of
from replay_service.ledger.samples import SampleQuery, SampleStatistics
from replay_service.ledger.schema import events, runs, sample_progress, snapshots
from replay_service.ledger.schema import samples as samples_table
from replay_service.sampling.events import Created, JournalEvent, Planned, Reported, Rewound
from replay_service.sampling.partition import Partition
from replay_service.sampling.run_config import RunConfig

_RECORDS: Final = select(runs, events.c.payload).join(events, (events.c.run == runs.c.run) & (events.c.seq == 0))

_EPOCH_BITS: Final = 62

CATCH_UP_EVENTS: Final = 1000
"""Events whose reports are merged into the per-sample statistics at once."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as it was created."""

    run: str
    corpus: str
    created: Created
    """The first event of its journal."""
    created_at: str

    @property
    def config(self) -> RunConfig:
        return self.created.config


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run's state after its first `seq` events; `attempt` counts its rewinds, from 1."""

    seq: int
    attempt: int
    next_step: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """An event where it stands in the journal."""

    seq: int
    attempt: int
    event: JournalEvent


class Journal:
    """Reads answer what is committed. Events are written under a lease, and durable when the call returns."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._committer = Committer(engine)
        self._epoch = QuickLook(select(runs.c.owner_epoch).where(runs.c.run == bindparam("the_run")), engine)
        self.is_embedded = engine.dialect.name == "sqlite"
        """Whether it is a file of this machine, into which a look takes no longer than a few microseconds."""

    def close(self) -> None:
        """Finish what is being written, and let the database go."""
        self._committer.close()
        self._epoch.close()
        self._engine.dispose()

    def ping(self) -> None:
        """Raises SQLAlchemyError when the database does not answer; costs the same however much the journal holds."""
        with self._engine.connect() as connection:
            connection.execute(select(runs.c.run).limit(1)).all()

    def create_run(self, record: RunRecord) -> None:
        """Write down a new run and its first event.

        Raises:
            RunExists: when the name is taken.
        """
        values = {
            "run": record.run,
            "corpus": record.corpus,
            "created_at": record.created_at,
            # Not 0: who owned a run of this name that was deleted must not take itself for the owner of this one.
            "owner_epoch": secrets.randbits(_EPOCH_BITS),
        }
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(runs).values(values))
                connection.execute(insert(events), _rows(record.run, 1, 0, [record.created]))
        except IntegrityError:
            raise RunExists(f"run {record.run!r} exists already; choose another name") from None

    def runs(self) -> list[RunRecord]:
        with self._engine.connect() as connection:
            return [_record(row) for row in connection.execute(_RECORDS.order_by(runs.c.run))]

    def run(self, name: str) -> RunRecord:
        with self._engine.connect() as connection:
            row = connection.execute(_RECORDS.where(runs.c.run == name)).first()
        if row is None:
            raise _unknown(name)
        return _record(row)

    def take(self, run: str) -> Lease:
        """Become the owner of a run; from now on nothing that an earlier owner writes is kept."""
        one_more = update(runs).where(runs.c.run == run).values(owner_epoch=runs.c.owner_epoch + 1)
        with self._engine.begin() as connection:
            epoch = connection.execute(one_more.returning(runs.c.owner_epoch)).scalar_one_or_none()
        if epoch is None:
            raise _unknown(run)
        return Lease(run, epoch)

    def check(self, lease: Lease) -> None:
        """Raises RunTaken when somebody else has become the owner of the run."""
        epoch = self._epoch.scalar({"the_run": lease.run})
        if epoch != lease.epoch:
            lease.failure = run_taken(lease.run)
            raise lease.failure

    def append(
        self,
        lease: Lease,
        attempt: int,
        first_seq: int,
        new: Sequence[JournalEvent],
        snapshot: Snapshot | None = None,
    ) -> None:
        """Write the events `new`, numbered from `first_seq`, and a snapshot if one is due: all of it or nothing.

        They are durable when it returns. It raises what `Committer.commit` raises.
        """
        also = None if snapshot is None else lambda each: _insert_snapshot(each, lease.run, snapshot)
        self._committer.commit(lease, _rows(lease.run, attempt, first_seq, new), also)

    def append_rewind(self, lease: Lease, seq: int, event: Rewound, snapshot: Snapshot) -> None:
        """Write a rewind and the state that it leads to; what was derived from forgotten events goes away with it."""

        def also(connection: Connection) -> None:
            later = (snapshots.c.run == lease.run, snapshots.c.next_step > snapshot.next_step)
            connection.execute(delete(snapshots).where(*later))
            _insert_snapshot(connection, lease.run, snapshot)
            samples.forget(connection, lease.run)

        self._committer.commit(lease, _rows(lease.run, snapshot.attempt, seq, [event]), also)

    def delete(self, lease: Lease) -> None:
        """Remove a run, its events and what was derived from them; the lease is void then."""

        def remove(connection: Connection) -> None:
            for table in (sample_progress, samples_table, snapshots, events, runs):
                connection.execute(delete(table).where(table.c.run == lease.run))

        self._committer.commit(lease, [], remove)
        lease.failure = run_taken(lease.run)

    def _standing_reports(self, run: str, entries: Iterable[Entry]) -> list[Reported]:
        """The reports among `entries` that no rewind has taken back."""
        query = select(events.c.seq, events.c.step).where(events.c.run == run, events.c.kind == "rewound")
        with self._engine.connect() as connection:
            rewinds = connection.execute(query).all()
        return [
            entry.event
            for entry in entries
            if isinstance(entry.event, Reported)
            and all(entry.event.step <= step for seq, step in rewinds if seq > entry.seq)
        ]

    def _catch_up(self, run: str, partition: Partition) -> None:
        """Bring the samples up to date, some events at a time, so that nobody waits long for the database."""
        more = True
        while more:
            with self._engine.begin() as connection:
                first_seq = samples.begin(connection, run)
                entries = list(self.entries(run, first_seq, CATCH_UP_EVENTS))
                reports = self._standing_reports(run, entries)
                samples.merge(connection, run, reports, partition, first_seq + len(entries))
            more = len(entries) == CATCH_UP_EVENTS

    def entries(
        self,
        run: str,
        first_seq: int = 0,
        most: int | None = None,
        kind: str | None = None,
        end_seq: int | None = None,
    ) -> Iterator[Entry]:
        """The events of a run from number `first_seq` to before `end_seq`, all or of one kind, oldest first, read in a
        stream."""
        query = select(events).where(events.c.run == run, events.c.seq >= first_seq).limit(most)
        if end_seq is not None:
            query = query.where(events.c.seq < end_seq)
        return self._entries(query if kind is None else query.where(events.c.kind == kind))

    def _entries(self, query: Select[tuple[object, ...]]) -> Iterator[Entry]:
        query = query.order_by(events.c.seq)
        with self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=1000).execute(query):
                yield Entry(row.seq, row.attempt, event_of(row))

    def planned(self, run: str, first_step: int, num_steps: int) -> list[Planned]:
        """The plans of a window of steps, in step order; steps without a plan are left out.

        Of a step that was planned again after a rewind, the last plan is the one that stands.
        """
        query = (
            select(events)
            .where(events.c.run == run, events.c.kind == "planned")
            .where(events.c.step.between(first_step, first_step + num_steps - 1))
            .order_by(events.c.step, events.c.attempt)
        )
        with self._engine.connect() as connection:
            last = {row.step: row for row in connection.execute(query)}
        return [planned_of(row) for row in last.values()]

    def samples(self, run: str, query: SampleQuery, partition: Partition) -> list[SampleStatistics]:
        """Measurements of a run's samples: one page."""
        self._catch_up(run, partition)
        with self._engine.connect() as connection:
            return samples.page(connection, run, query)

    def sample(self, run: str, sample_id: int, partition: Partition) -> tuple[SampleStatistics, list[Reported]] | None:
        """Measurements of one sample, and its reports, oldest first; None if there are none.

        A visit that could not be measured counts in neither.
        """
        self._catch_up(run, partition)
        with self._engine.connect() as connection:
            found = samples.one(connection, run, sample_id)
        if found is None:
            return None
        query = select(events).where(events.c.run == run, events.c.kind == "reported")
        entries = self._entries(query.where(events.c.step.between(found.first_step, found.last_step)))
        reports = self._standing_reports(run, entries)
        visits = [replace(each, rows=_measured(each.rows, sample_id)) for each in reports]
        return found, [each for each in visits if len(each.rows)]

    def is_sealed(self, run: str, step: int) -> bool:
        """Whether the run went on without the missing reports of a step."""
        query = select(events.c.seq).where(events.c.run == run, events.c.kind == "sealed", events.c.step == step)
        with self._engine.connect() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def latest_snapshot(self, run: str, most_seq: int, most_next_step: int | None = None) -> Snapshot | None:
        """The latest snapshot of at most `most_seq` events of a run, or of those whose next step is at most
        `most_next_step`."""
        query = select(snapshots).where(snapshots.c.run == run, snapshots.c.seq <= most_seq)
        if most_next_step is not None:
            query = query.where(snapshots.c.next_step <= most_next_step)
        with self._engine.connect() as connection:
            row = connection.execute(query.order_by(snapshots.c.seq.desc()).limit(1)).first()
        return None if row is None else _snapshot(row)

    def snapshots(self, run: str) -> list[Snapshot]:
        """All snapshots of a run, oldest first."""
        with self._engine.connect() as connection:
            query = select(snapshots).where(snapshots.c.run == run).order_by(snapshots.c.seq)
            return [_snapshot(row) for row in connection.execute(query)]

    def end_seq(self, run: str) -> int:
        """The number that the next event of a run will have."""
        with self._engine.connect() as connection:
            last = connection.execute(select(func.max(events.c.seq)).where(events.c.run == run)).scalar_one()
        return 0 if last is None else int(last) + 1

    def num_events(self, run: str) -> int:
        with self._engine.connect() as connection:
            query = select(func.count()).select_from(events).where(events.c.run == run)
            return connection.execute(query).scalar_one()


def _unknown(run: str) -> UnknownRun:
    return UnknownRun(f"there is no run {run!r}; GET /v1/runs lists them, POST /v1/runs creates one")


def _measured(rows: np.ndarray, sample_id: int) -> np.ndarray:
    """Measurements of one sample, REPORTED_ROW [0 or 1]."""
    measured: np.ndarray = rows[(rows["sample_id"] == sample_id) & (rows["num_tokens"] > 0)]
    return measured


def _rows(run: str, attempt: int, first_seq: int, new: Sequence[JournalEvent]) -> list[dict[str, object]]:
    return [{"run": run, "seq": first_seq + i, "attempt": attempt, **columns_of(event)} for i, event in enumerate(new)]


def _insert_snapshot(connection: Connection, run: str, snapshot: Snapshot) -> None:
    connection.execute(
        insert(snapshots).values(
            run=run,
            seq=snapshot.seq,
            attempt=snapshot.attempt,
            next_step=snapshot.next_step,
            state=snapshot.state,
        )
    )


def _record(row: Row[tuple[object, ...]]) -> RunRecord:
    return RunRecord(row.run, row.corpus, created_of(row.payload), row.created_at)


def _snapshot(row: Row[tuple[object, ...]]) -> Snapshot:
    return Snapshot(row.seq, row.attempt, row.next_step, row.state)
