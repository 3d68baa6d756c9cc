"""Reading runs without owning them: no epoch is raised, and no owner waits for a restore."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from replay_service.errors import JournalUnavailable, RunTaken
from replay_service.ledger import restoring
from replay_service.ledger.damaged_journals import CONTENT_ERRORS
from replay_service.ledger.journal import Journal
from replay_service.ledger.owners import Owners
from replay_service.ledger.progress import Point
from replay_service.ledger.recently_used import RecentlyUsed
from replay_service.ledger.records import RunRecord
from replay_service.ledger.restoring import Restored
from replay_service.ledger.run_view import RunView

T = TypeVar("T")

MOST_RUNS_KEPT: Final = 16
"""Whose states a process keeps to go on from, besides those that it owns."""


@dataclass(frozen=True, slots=True)
class _Folded:
    """A run's state as it was folded at a look."""

    record: RunRecord
    restored: Restored
    incarnation: tuple[int | None, str]

    def goes_on_to(self, point: Point) -> bool:
        """Whether the events from here to the point lead there: neither a rewind nor another run of the name."""
        return self.incarnation == point.incarnation and self.restored.attempt == point.attempt


@dataclass(slots=True, eq=False)
class _Kept:
    """What was folded of one run, for one thread after the other."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    folded: _Folded | None = None


class RunReaders:
    """Views of runs. An owner in this process answers from its own state; all other runs are folded here.

    The state of a run is folded from the latest snapshot and the events after it. It is kept, and the next look goes
    on from there.

    Args:
        most_runs: how many such states are kept; those that were looked at last.
    """

    def __init__(self, journal: Journal, owners: Owners, most_runs: int = MOST_RUNS_KEPT) -> None:
        self._journal = journal
        self._owners = owners
        self._kept = RecentlyUsed(most_runs, _Kept)

    def read(self, run: str, see: Callable[[RunView], T]) -> T:
        """The result of `see` on a run at one committed point, which is no earlier than the call.

        Raises:
            UnknownRun: when there is no such run.
            JournalDamaged: when its journal cannot be folded.
        """
        owner = self._owners.at_hand(run)
        if owner is not None:
            try:
                return owner.look(see)
            except (RunTaken, JournalUnavailable):
                pass  # its state is not the journal's now, and to restore it is not for a reader
        kept = self._kept.get(run)
        with kept.lock:
            return see(self._brought_up(kept, run))

    def _brought_up(self, kept: _Kept, run: str) -> RunView:
        """The run as its journal tells it now."""
        while True:
            point = self._journal.point(run)
            # Nothing is kept of a fold that fails half-way.
            before, kept.folded = kept.folded, None
            try:
                folded, has_read = self._folded(before, run, point)
            except SQLAlchemyError:
                raise
            except Exception as error:
                # Of a run that was deleted and created again meanwhile, what was read need not fit together.
                if self._journal.point(run).incarnation != point.incarnation:
                    continue
                if not isinstance(error, CONTENT_ERRORS):
                    raise
                raise self._journal.damaged.note(run, point.incarnation, error) from error
            if not has_read or self._journal.point(run).incarnation == point.incarnation:
                self._journal.damaged.forget(run)
                kept.folded = folded
                return RunView(folded.record, folded.restored.state, point)

    def _folded(self, before: _Folded | None, run: str, point: Point) -> tuple[_Folded, bool]:
        """The run at a point, and whether its journal had to be read for it."""
        if before is None or not before.goes_on_to(point):
            record = self._journal.run(run)
            restored = restoring.latest(self._journal, record, point.end_seq)
        elif before.restored.num_events == point.end_seq:
            return before, False
        else:
            record = before.record
            restored = restoring.further(self._journal, record, before.restored, point.end_seq)
        return _Folded(record, restored, point.incarnation), True
