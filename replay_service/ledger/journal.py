"""The journal: runs, their events in the order in which they happened, and snapshots of their states."""

import secrets
from collections.abc import Collection, Generator, Sequence
from math import inf
from typing import Final

from sqlalchemy import Connection, Engine, Select, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from replay_service.errors import RunExists, UnknownRun
from replay_service.ledger import samples
from replay_service.ledger.committer import Committer, Lease, WallClock, run_taken, wall_clock_ms
from replay_service.ledger.damaged_journals import DamagedJournals
from replay_service.ledger.database import QuickLook
from replay_service.ledger.event_rows import columns_of, planned_of
from replay_service.ledger.event_times import EventTimes
from replay_service.ledger.meter import NO_METER, Meter
from replay_service.ledger.progress import Point, Progress
from replay_service.ledger.records import (
    Entry,
    RunHead,
    RunOverview,
    RunRecord,
    Snapshot,
    entry_of,
    head_of,
    overview_of,
    point_of,
    record_of,
    snapshot_of,
)
from replay_service.ledger.sample_reader import SamplePage, SampleReader, SampleVisits
from replay_service.ledger.samples import TOKEN_FLIPS, DamageUnit, SampleQuery
from replay_service.ledger.schema import (
    COMMON_KINDS,
    IS_RARE,
    events,
    forgetting_points,
    runs,
    sample_progress,
    snapshots,
)
from replay_service.ledger.schema import samples as samples_table
from replay_service.sampling.events import JournalEvent, Planned, Rewound
from replay_service.sampling.partition import Partition
from replay_service.sampling.run_state import RunState

_RECORDS: Final = select(runs, events.c.payload).join(events, (events.c.run == runs.c.run) & (events.c.seq == 0))

_POINTS: Final = (
    select(runs, events.c.seq, events.c.attempt.label("last_attempt"))
    .join(events, events.c.run == runs.c.run)
    .order_by(events.c.seq.desc())
    .limit(1)
)

_EPOCH_BITS: Final = 62
_INCARNATION_BITS: Final = 63


class Journal:
    """Reads answer what is committed. Events are written under a lease, and durable when the call returns."""

    def __init__(self, engine: Engine, clock: WallClock = wall_clock_ms, meter: Meter = NO_METER) -> None:
        self._engine = engine
        self._clock = clock
        self._committer = Committer(engine, clock, meter)
        self._samples = SampleReader(engine, self.point)
        self.times = EventTimes(engine)
        self.damaged = DamagedJournals()
        self._epoch = QuickLook(select(runs.c.owner_epoch).where(runs.c.run == bindparam("the_run")), engine)
        self.is_embedded = engine.dialect.name == "sqlite"
        """Whether it is a file of this machine, into which a look takes no longer than a few microseconds."""

    @property
    def engine(self) -> Engine:
        """The database, for what is derived from the journal."""
        return self._engine

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
            "incarnation": secrets.randbits(_INCARNATION_BITS),
            "corpus_fingerprint": record.created.corpus_fingerprint,
        }
        first = [{**row, "committed_at": self._clock()} for row in _rows(record.run, 1, 0, [record.created])]
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(runs).values(values))
                connection.execute(insert(events), first)
        except IntegrityError:
            raise RunExists(f"run {record.run!r} exists already; choose another name") from None

    def runs(self) -> list[RunRecord]:
        with self._engine.connect() as connection:
            return [record_of(row) for row in connection.execute(_RECORDS.order_by(runs.c.run))]

    def heads(self) -> list[RunHead]:
        """How far each run is, by name; one query, however long their journals are."""
        columns = [each for each in runs.c if each.name != "config"]
        with self._engine.connect() as connection:
            return [head_of(row) for row in connection.execute(select(*columns).order_by(runs.c.run))]

    def overviews(self, names: Collection[str]) -> list[RunOverview]:
        """Some runs and how far they are, by name; one query. A run that is not there is left out."""
        query = _RECORDS.where(runs.c.run.in_(sorted(names))).order_by(runs.c.run)
        with self._engine.connect() as connection:
            return [overview_of(row) for row in connection.execute(query)]

    def overview(self, name: str) -> RunOverview:
        """One run and how far it is; raises UnknownRun."""
        with self._engine.connect() as connection:
            row = connection.execute(_RECORDS.where(runs.c.run == name)).first()
        if row is None:
            raise _unknown(name)
        return overview_of(row)

    def point(self, run: str) -> Point:
        """The end of a run's journal now; raises UnknownRun. It costs the same however long the journal is."""
        with self._engine.connect() as connection:
            row = connection.execute(_POINTS.where(runs.c.run == run)).first()
        if row is None:
            raise _unknown(run)
        return point_of(row, row.seq + 1, row.last_attempt)

    def run(self, name: str) -> RunRecord:
        with self._engine.connect() as connection:
            row = connection.execute(_RECORDS.where(runs.c.run == name)).first()
        if row is None:
            raise _unknown(name)
        return record_of(row)

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
        lease.check(self._epoch.scalar({"the_run": lease.run}))

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
        progress = Progress.of(new, first_seq, attempt)
        self._committer.commit(lease, _rows(lease.run, attempt, first_seq, new), also, progress)

    def append_rewind(self, lease: Lease, seq: int, event: Rewound, snapshot: Snapshot, state: RunState) -> None:
        """Write a rewind and the state that it leads to; what was derived from forgotten events goes away with it."""

        def also(connection: Connection) -> None:
            later = (snapshots.c.run == lease.run, snapshots.c.next_step > snapshot.next_step)
            connection.execute(delete(snapshots).where(*later))
            _insert_snapshot(connection, lease.run, snapshot)
            samples.forget(connection, lease.run)

        progress = Progress.of_state(state, seq + 1, snapshot.attempt)
        self._committer.commit(lease, _rows(lease.run, snapshot.attempt, seq, [event]), also, progress)

    def delete(self, lease: Lease) -> None:
        """Remove a run, its events and what was derived from them; the lease is void then."""

        def remove(connection: Connection) -> None:
            for table in (sample_progress, samples_table, forgetting_points, snapshots, events, runs):
                connection.execute(delete(table).where(table.c.run == lease.run))

        self._committer.commit(lease, [], remove)
        lease.failure = run_taken(lease.run)

    def entries(
        self,
        run: str,
        first_seq: int = 0,
        most: int | None = None,
        kinds: Collection[str] | None = None,
        end_seq: int | None = None,
    ) -> Generator[Entry, None, None]:
        """The events of a run from number `first_seq` to before `end_seq`, all or of some kinds, oldest first, read in
        a stream."""
        query = select(events).where(events.c.run == run, events.c.seq >= first_seq).limit(most)
        if end_seq is not None:
            query = query.where(events.c.seq < end_seq)
        if kinds is not None:
            query = query.where(events.c.kind.in_(sorted(kinds)))
            if not set(COMMON_KINDS) & set(kinds):
                query = query.where(IS_RARE)
        return self._entries(query)

    def latest(self, run: str, kinds: Collection[str], end_seq: int) -> Entry | None:
        """The latest event of these kinds before `end_seq`; of kinds that are rare, it costs little."""
        mine = select(events).where(events.c.run == run, events.c.kind.in_(sorted(kinds)), events.c.seq < end_seq)
        if not set(COMMON_KINDS) & set(kinds):
            mine = mine.where(IS_RARE)
        with self._engine.connect() as connection:
            row = connection.execute(mine.order_by(events.c.seq.desc()).limit(1)).first()
        return None if row is None else entry_of(row)

    def _entries(self, query: Select[tuple[object, ...]]) -> Generator[Entry, None, None]:
        query = query.order_by(events.c.seq)
        with (
            self._engine.connect() as connection,
            connection.execution_options(yield_per=1000).execute(query) as rows,
        ):
            for row in rows:
                yield entry_of(row)

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

    def samples(self, run: str, query: SampleQuery, partition: Partition, work_s: float = inf) -> SamplePage:
        """Measurements of a run's samples: one page; raises UnknownRun.

        Args:
            work_s: for how long to bring them up to date before, seconds.
        """
        return self._samples.page(run, query, partition, work_s)

    def sample(
        self, run: str, sample_id: int, partition: Partition, unit: DamageUnit = TOKEN_FLIPS
    ) -> SampleVisits | None:
        """Measurements of one sample, and its reports, oldest first; None if there are none. Raises UnknownRun."""
        return self._samples.one(run, sample_id, partition, unit)

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
        return None if row is None else snapshot_of(row)

    def snapshots(self, run: str) -> list[Snapshot]:
        """All snapshots of a run, oldest first."""
        with self._engine.connect() as connection:
            query = select(snapshots).where(snapshots.c.run == run).order_by(snapshots.c.seq)
            return [snapshot_of(row) for row in connection.execute(query)]

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
