"""Group commit: what many requests write at about the same time becomes durable by one commit."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
from sqlalchemy import Connection, Engine, bindparam, insert, update

from replay_service.errors import JournalUnavailable, ReplayError, RunTaken
from replay_service.ledger.combining import Combiner
from replay_service.ledger.database import DirectStatement, Row
from replay_service.ledger.meter import NO_METER, Meter
from replay_service.ledger.progress import CHANGES, NO_PROGRESS, Progress
from replay_service.ledger.schema import events, runs

_log = structlog.get_logger()

WallClock = Callable[[], int]
"""Tells the time in milliseconds since 1970-01-01 UTC."""


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


_ROW_WAIT_MS: Final = 500
"""How long a commit waits for the row of a run that another session holds, on PostgreSQL. All others wait with it."""
_ROW_IS_HELD: Final = "55P03"
"""PostgreSQL's name of the error of a wait that was too long: lock_not_available."""

_CLOSE: Final = None
"""The request to close, among the writes."""


@dataclass(slots=True, eq=False)
class Lease:
    """The right to write one run, until somebody takes it with a higher epoch.

    After a failed commit a lease is void: whatever was to be written under it later would leave a gap in the journal.
    """

    run: str
    epoch: int
    failure: ReplayError | None = None

    def renewed(self) -> "Lease":
        """A lease in the place of a void one, for an owner that has read its run from the journal again."""
        return Lease(self.run, self.epoch)

    def check(self, epoch: int | None) -> None:
        """Raises RunTaken, from now on always, unless `epoch` is the run's present one."""
        if epoch != self.epoch:
            self.failure = run_taken(self.run)
            raise self.failure


@dataclass(slots=True, eq=False)
class _Write:
    """The writes of one request: rows of `events` without their time, how far the run is after them, and whatever else
    belongs into the same transaction."""

    lease: Lease
    rows: Sequence[Row]
    progress: Progress
    also: Callable[[Connection], None] | None
    is_durable: bool = field(default=False, init=False)


class Committer:
    """Commits the writes of many threads together: what comes while one commit is under way becomes the next one.

    So a request on its own commits by itself, without another thread to wake up, and of many that come at once the
    first commits for all.
    """

    def __init__(self, engine: Engine, clock: WallClock = wall_clock_ms, meter: Meter = NO_METER) -> None:
        self._engine = engine
        self._clock = clock
        self._meter = meter
        self._insert = DirectStatement(insert(events), engine)
        mine = (runs.c.run == bindparam("the_run")) & (runs.c.owner_epoch == bindparam("epoch"))
        self._hold = DirectStatement(update(runs).where(mine).values(CHANGES), engine)
        self._combiner = Combiner(self._commit_all)
        self._connection: Connection | None = None
        self._closed = False

    def commit(
        self,
        lease: Lease,
        rows: Sequence[Row],
        also: Callable[[Connection], None] | None = None,
        progress: Progress = NO_PROGRESS,
    ) -> None:
        """Return when the rows, the progress of the run, and what `also` writes, are durable.

        Every event bears the time at which its commit began.

        Raises:
            RunTaken: when the lease's epoch has passed.
            JournalUnavailable: when they could not be committed.
        """
        write = _Write(lease, rows, progress, also)
        self._combiner.submit(write)
        if not write.is_durable:
            lease.failure = lease.failure or JournalUnavailable("the commit was interrupted; try again")
            raise lease.failure

    def close(self) -> None:
        """Write what waits; what is submitted from now on fails."""
        self._combiner.submit(_CLOSE)

    def _commit_all(self, requests: Sequence[_Write | None]) -> None:
        writes = [each for each in requests if each is not _CLOSE]
        if writes:
            self._commit(writes)
        if len(writes) < len(requests):
            self._closed = True
            self._disconnect()

    def _commit(self, writes: list[_Write]) -> None:
        leases = dict.fromkeys(write.lease for write in writes)
        began = time.perf_counter()
        failure = self._try(writes)
        self._meter.committed(time.perf_counter() - began)
        if failure is not None and len(leases) > 1:
            # Which run is at fault does not show; the others need not suffer for it.
            for lease in leases:
                self._commit([write for write in writes if write.lease is lease])
            return
        for write in writes:
            write.is_durable = failure is None
            write.lease.failure = failure or write.lease.failure

    def _try(self, writes: list[_Write]) -> ReplayError | None:
        if self._closed:
            return JournalUnavailable("the journal is closed: the service is stopping")
        try:
            connection = self._connected()
            with connection.begin():
                at = self._clock()
                for write in writes:
                    self._keep(connection, write.lease, write.progress.parameters(at))
                rows = [{**row, "committed_at": at} for write in writes for row in write.rows]
                self._insert.execute(connection, rows)
                for write in writes:
                    if write.also is not None:
                        write.also(connection)
        except ReplayError as error:
            return error
        except Exception as error:
            # Every waiting request must hear of it, whatever a driver raises.
            if getattr(error, "sqlstate", None) == _ROW_IS_HELD:
                return JournalUnavailable("another session of the database holds the run; try again")
            self._disconnect()
            _log.error("the journal could not be written", runs=[write.lease.run for write in writes], exc_info=error)
            return JournalUnavailable(f"the journal could not be written: {error.__class__.__name__}; try again")
        return None

    def _connected(self) -> Connection:
        """A connection that is kept from one commit to the next: to take one from the pool costs as much as a write."""
        if self._connection is None:
            self._connection = self._engine.connect()
            if self._engine.dialect.name == "postgresql":
                self._connection.exec_driver_sql(f"SET lock_timeout = {_ROW_WAIT_MS}")
                self._connection.commit()
        return self._connection

    def _disconnect(self) -> None:
        """Let the connection go, and those in the pool: what broke one may have broken them all."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None
            self._engine.dispose()

    def _keep(self, connection: Connection, lease: Lease, progress: Row) -> None:
        """Fail unless the lease is good, and keep anybody else from taking the run before the commit."""
        if lease.failure is not None:
            raise lease.failure
        if not self._hold.execute(connection, [{"the_run": lease.run, "epoch": lease.epoch, **progress}]):
            raise run_taken(lease.run)


def run_taken(run: str) -> RunTaken:
    return RunTaken(f"another process has taken over run {run!r}; ask again, and whoever answers owns it then")
