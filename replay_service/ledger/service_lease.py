"""The lease of a cluster: which replica of the service owns the runs now, as one row of the database says.

The lease finds the owner. It does not protect a run: that do the epochs of the runs, which every commit checks. So a
wrong lease costs time, never data.

No clock is compared with another one. The holder raises `beat` again and again. A candidate that has seen the same beat
for as long as the lease lasts, by its own clock, may take it. Kubernetes elects its leaders by the same rule.
"""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Engine, insert, select, update
from sqlalchemy.exc import IntegrityError

from replay_service.ledger.schema import service_lease

_ROW: Final = 1
NOBODY: Final = ""


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """The lease as it was read.

    Attributes:
        epoch: counts the times that it was taken.
        holder: the replica that has it; NOBODY: it was given up.
        address: where this replica's owner can be asked, host:port.
        beat: changes while the holder is alive.
        duration_s: for how long the same beat means that it is.
    """

    epoch: int
    holder: str
    address: str
    beat: int
    duration_s: float


class ServiceLease:
    """The lease in the database.

    Raises, from every method:
        SQLAlchemyError: when the database does not answer.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self) -> LeaseRecord:
        columns = [service_lease.c[each] for each in LeaseRecord.__slots__]
        with self._engine.connect() as connection:
            row = connection.execute(select(*columns).where(service_lease.c.id == _ROW)).one_or_none()
        return LeaseRecord(0, NOBODY, "", 0, 0.0) if row is None else LeaseRecord(*row)

    def take(
        self, seen: LeaseRecord, holder: str, address: str, duration_s: float, by_force: bool = False
    ) -> int | None:
        """Take the lease; of several who try at once, one gets it.

        Args:
            seen: the lease as this candidate has read it.
            by_force: whether to take it although its holder may be alive.

        Returns:
            The new epoch, or None when somebody was faster, or the holder has shown that it is alive.
        """
        mine = {"holder": holder, "address": address, "duration_s": duration_s}
        if not seen.epoch:
            self._add_row()
        same = (service_lease.c.id == _ROW) & (service_lease.c.epoch == seen.epoch)
        if not by_force:
            same &= service_lease.c.beat == seen.beat
        with self._engine.begin() as connection:
            changed = connection.execute(update(service_lease).where(same).values(epoch=seen.epoch + 1, beat=0, **mine))
        return seen.epoch + 1 if changed.rowcount else None

    def keep(self, epoch: int) -> bool:
        """Show that the holder is alive; False when somebody else has taken the lease."""
        return self._change(epoch, beat=service_lease.c.beat + 1)

    def give_up(self, epoch: int) -> None:
        """Let the next candidate take it at once."""
        self._change(epoch, holder=NOBODY, beat=service_lease.c.beat + 1)

    def _change(self, epoch: int, **values: object) -> bool:
        mine = (service_lease.c.id == _ROW) & (service_lease.c.epoch == epoch)
        with self._engine.begin() as connection:
            return bool(connection.execute(update(service_lease).where(mine).values(**values)).rowcount)

    def _add_row(self) -> None:
        row = {"id": _ROW, "epoch": 0, "holder": NOBODY, "address": "", "beat": 0, "duration_s": 0.0}
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(service_lease).values(row))
        except IntegrityError:
            pass  # somebody was faster
