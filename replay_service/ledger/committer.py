"""Group commit: what many requests write at about the same time becomes durable by one commit."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import structlog
from sqlalchemy import Connection, Engine, update

from replay_service.errors import JournalUnavailable, ReplayError, RunTaken
from replay_service.ledger.schema import runs

_log = structlog.get_logger()


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


@dataclass(frozen=True, slots=True)
class _Write:
    lease: Lease
    work: Callable[[Connection], None]
    done: Future[None] = field(default_factory=Future)


class Committer:
    """One thread that writes all that waits in one transaction, while the next writes gather."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queue: SimpleQueue[_Write | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    def submit(self, lease: Lease, work: Callable[[Connection], None]) -> Future[None]:
        """Write under a lease, after all that was submitted before; the future ends when it is durable.

        The future raises RunTaken when the lease's epoch has passed, and JournalUnavailable when the commit failed.
        """
        write = _Write(lease, work)
        if self._closed:
            _fail([write], JournalUnavailable("the journal is closed: the service is stopping"))
        else:
            self._queue.put(write)
        return write.done

    def close(self) -> None:
        """Write what waits, then stop; what is submitted from now on fails."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        going_on = True
        while going_on:
            gathered = [self._queue.get(), *self._waiting()]
            going_on = None not in gathered
            self._commit([write for write in gathered if write is not None])

    def _waiting(self) -> Iterable[_Write | None]:
        while True:
            try:
                yield self._queue.get_nowait()
            except Empty:
                return

    def _commit(self, writes: list[_Write]) -> None:
        leases = dict.fromkeys(write.lease for write in writes)
        failure = self._try(writes)
        if failure is None:
            _finish(writes)
        elif len(leases) == 1:
            _fail(writes, failure)
        else:
            # Which run is at fault does not show; the others need not suffer for it.
            for lease in leases:
                self._commit([write for write in writes if write.lease is lease])

    def _try(self, writes: list[_Write]) -> ReplayError | None:
        try:
            with self._engine.begin() as connection:
                for lease in dict.fromkeys(write.lease for write in writes):
                    _hold(connection, lease)
                for write in writes:
                    write.work(connection)
        except ReplayError as error:
            return error
        except Exception as error:
            # The edge of a thread that every run depends on: whatever a driver raises, it must live on.
            _log.error("the journal could not be written", runs=[write.lease.run for write in writes], exc_info=error)
            return JournalUnavailable(f"the journal could not be written: {error.__class__.__name__}; try again")
        return None


def _hold(connection: Connection, lease: Lease) -> None:
    """Fail unless the lease is good, and keep anybody else from taking the run before the commit."""
    if lease.failure is not None:
        raise lease.failure
    mine = (runs.c.run == lease.run) & (runs.c.owner_epoch == lease.epoch)
    if not connection.execute(update(runs).where(mine).values(owner_epoch=lease.epoch)).rowcount:
        raise RunTaken(f"another process has taken over run {lease.run!r}; ask that one")


def _finish(writes: list[_Write]) -> None:
    for write in writes:
        write.done.set_result(None)


def _fail(writes: list[_Write], failure: ReplayError) -> None:
    for write in writes:
        write.lease.failure = failure
        write.done.set_exception(failure)
