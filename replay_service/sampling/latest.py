"""The latest reports of a run, one by one: the bounded memory that forgetting is estimated from."""

from dataclasses import dataclass
from typing import Final

import numpy as np

MOST_REPORTS: Final = 2048
"""How many reports are kept: what 2,000 reports do not show of forgetting, the window of an estimate would cut off."""

REPORT_ROW: Final = np.dtype([("step", "<i8"), ("stratum", "<i4"), ("chance", "<f8"), ("excess_nats", "<f8")])
"""One report. chance: the probability that a single draw of its plan was of this stratum and this kind of visit.
excess_nats: loss minus base loss, nats per token."""


@dataclass(slots=True, eq=False)
class LatestReports:
    """The last `MOST_REPORTS` reports of one kind of visit, in the order in which they were folded."""

    _room: np.ndarray
    """REPORT_ROW [2 * MOST_REPORTS]: a report is written at the end, and all are moved when the room is full."""
    _end: int

    @classmethod
    def of(cls, rows: np.ndarray | None = None) -> "LatestReports":
        """Of the given rows (REPORT_ROW [n]), in their order."""
        latest = cls(np.zeros(2 * MOST_REPORTS, dtype=REPORT_ROW), 0)
        if rows is not None:
            latest.add(rows)
        return latest

    @property
    def rows(self) -> np.ndarray:
        """REPORT_ROW [at most MOST_REPORTS], oldest first; not to change."""
        rows: np.ndarray = self._room[max(0, self._end - MOST_REPORTS) : self._end]
        return rows

    def copy(self) -> "LatestReports":
        return LatestReports.of(self.rows)

    def add(self, rows: np.ndarray) -> None:
        """Take in REPORT_ROW [n]."""
        rows = rows[-MOST_REPORTS:]
        if self._end + len(rows) > len(self._room):
            kept = self.rows[len(rows) :].copy()
            self._room[: len(kept)] = kept
            self._end = len(kept)
        self._room[self._end : self._end + len(rows)] = rows
        self._end += len(rows)
