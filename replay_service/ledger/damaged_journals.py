"""Journals that this process could not fold: what the list of runs says of them, until a fold succeeds."""

import struct
from typing import Final

import structlog

from replay_service.errors import JournalDamaged

CONTENT_ERRORS: Final = (ArithmeticError, AssertionError, LookupError, TypeError, ValueError, struct.error)
"""Errors of a fold whose events do not fit together, or are no events."""

_log = structlog.get_logger()

Incarnation = tuple[int | None, str]


class DamagedJournals:
    """Remembers which runs could not be folded; any thread may write it down."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[Incarnation, JournalDamaged]] = {}

    def note(self, run: str, incarnation: Incarnation, error: Exception) -> JournalDamaged:
        """Remember that a run's journal could not be folded; the error to raise."""
        damaged = JournalDamaged(
            f"the journal of run {run!r} cannot be folded ({type(error).__name__}: {error}); "
            f"`replay-service journal verify {run}` says what is missing; bring the database back from a backup"
        )
        if run not in self._found:
            _log.error("damaged journal", run=run, exc_info=error)
        self._found[run] = incarnation, damaged
        return damaged

    def forget(self, run: str) -> None:
        """A fold has succeeded, or the run is gone."""
        self._found.pop(run, None)

    def problem(self, run: str, incarnation: Incarnation) -> str | None:
        """What is wrong with a run's journal; None where nothing is known to be."""
        found = self._found.get(run)
        return found[1].detail if found is not None and found[0] == incarnation else None
