"""A candidate for the ownership of all runs: it takes the lease of the cluster, keeps it, and knows who has it.

A holder counts as the owner only for two thirds of the time for which others respect its lease. So it has stopped
answering before the next one begins, even if it was paused meanwhile or cannot reach the database.
"""

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from replay_service.ledger.service_lease import NOBODY, LeaseRecord, ServiceLease

_log = structlog.get_logger()

TURN_EVERY_S: Final = 0.5
"""How often the lease is read."""

_CONNECT_S: Final = 2.0

_KEEP_EVERY: Final = 1 / 3
_COUNTS_FOR: Final = 2 / 3
"""Shares of the lease's duration: how often it is kept, and how long a holder counts as the owner after that."""

_RECENT_S: Final = 15.0
"""How long ago a gateway may have said that it cannot reach the owner, for a caller that still tries."""


def boot_clock() -> float:
    """Seconds, which also count while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class OwnerSeen:
    """The owner, as a candidate knows it.

    Attributes:
        epoch: of its lease; 0: there has never been one.
        address: where it can be asked, host:port; empty: nobody has the lease.
        is_here: whether it is this candidate.
    """

    epoch: int
    address: str
    is_here: bool


class Candidate:
    """Takes part in the cluster's choice of the owner, one `turn` after the other.

    Args:
        holder: a name of this replica that no other one has; a process that is started again keeps it, and so has the
            lease again at once.
        address: where this process can be asked, host:port.
        duration_s: of a lease that it takes.
        can_reach: whether the process at an address answers; asked before a lease is taken by force.
    """

    def __init__(
        self,
        lease: ServiceLease,
        holder: str,
        address: str,
        duration_s: float,
        can_reach: Callable[[str], bool],
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        self._lease = lease
        self._holder = holder
        self._address = address
        self._duration_s = duration_s
        self._can_reach = can_reach
        self._clock = clock
        self._seen: LeaseRecord | None = None
        self._seen_since = clock()
        self._epoch: int | None = None
        self._kept_at = 0.0
        self._has_resigned = False
        self._missed: _Missed | None = None
        self._trouble = ""

    @property
    def epoch(self) -> int | None:
        """Of the lease under which this process owns the runs now; None while it does not."""
        is_kept = self._clock() - self._kept_at < self._duration_s * _COUNTS_FOR
        return self._epoch if is_kept and not self._has_resigned else None

    @property
    def owner(self) -> OwnerSeen:
        """The owner as it is known here; this may be some turns old."""
        if (epoch := self.epoch) is not None:
            return OwnerSeen(epoch, self._address, True)
        seen = self._seen
        if seen is None or seen.holder in (NOBODY, self._holder):
            return OwnerSeen(seen.epoch if seen else 0, "", False)
        return OwnerSeen(seen.epoch, seen.address, False)

    def missed(self, epoch: int) -> None:
        """A gateway of this replica says that callers wait, and that it cannot reach the owner of this epoch."""
        now = self._clock()
        before = self._missed
        is_going_on = before is not None and before.epoch == epoch and now - before.last <= _RECENT_S
        self._missed = _Missed(epoch, before.first if is_going_on and before is not None else now, now)

    def turn(self) -> None:
        """Keep the lease, or see whether it can be taken; raises nothing."""
        try:
            if self._has_resigned:
                self._look()
            elif self._epoch is not None:
                self._keep_when_due(self._epoch)
            else:
                self._take_if_free()
            self._tell("")
        except SQLAlchemyError as error:
            self._tell(error.__class__.__name__)

    def resign(self) -> None:
        """Stop to be the owner, for ever; what is in progress should be finished first, and then `give_up` called."""
        self._has_resigned = True

    def give_up(self) -> None:
        """Let another replica take the lease at once; after `resign`."""
        epoch, self._epoch = self._epoch, None
        if epoch is not None:
            try:
                self._lease.give_up(epoch)
                _log.info("has given up the ownership of the runs", epoch=epoch)
            except SQLAlchemyError as error:
                _log.warning(
                    "the lease could not be given up and will pass by itself", problem=error.__class__.__name__
                )

    def _keep_when_due(self, epoch: int) -> None:
        now = self._clock()
        if now - self._kept_at < self._duration_s * _KEEP_EVERY:
            return
        if self._lease.keep(epoch):
            self._kept_at = now
        else:
            self._epoch = None
            _log.warning("another replica has taken the ownership of the runs", epoch=epoch)
            self._look()

    def _take_if_free(self) -> None:
        seen, now = self._look(), self._clock()
        is_forced = self._may_force(seen, now)
        is_free = seen.holder in (NOBODY, self._holder) or now - self._seen_since >= seen.duration_s
        if not (is_free or is_forced):
            return
        epoch = self._lease.take(seen, self._holder, self._address, self._duration_s, by_force=is_forced)
        if epoch is not None:
            self._epoch, self._kept_at, self._missed = epoch, now, None
            _log.info("owns the runs", epoch=epoch, address=self._address, by_force=is_forced)

    def _may_force(self, seen: LeaseRecord, now: float) -> bool:
        """Whether callers have waited for a whole lease for an owner that nobody here can reach."""
        missed = self._missed
        return (
            missed is not None
            and missed.epoch == seen.epoch
            and now - missed.last <= _RECENT_S
            and missed.last - missed.first >= seen.duration_s
            and not self._can_reach(seen.address)
        )

    def _look(self) -> LeaseRecord:
        seen = self._lease.read()
        if seen != self._seen:
            self._seen, self._seen_since = seen, self._clock()
        return seen

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:
            if trouble:
                _log.error("the lease of the cluster cannot be read or kept", problem=trouble)
            else:
                _log.info("the lease of the cluster can be read again")
        self._trouble = trouble


@dataclass(frozen=True, slots=True)
class _Missed:
    """Since when, and until when, gateways could not reach the owner of an epoch."""

    epoch: int
    first: float
    last: float


def can_connect(address: str) -> bool:
    """Whether something listens at host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except OSError:
        return False
    return True


def take_turns(candidate: Candidate, is_started: Callable[[], bool]) -> threading.Thread:
    """Start a thread in which a candidate takes its turns, as soon as the process can answer."""

    def run() -> None:
        while True:
            if is_started():
                candidate.turn()
            time.sleep(TURN_EVERY_S)

    thread = threading.Thread(target=run, name="candidate", daemon=True)
    thread.start()
    return thread
