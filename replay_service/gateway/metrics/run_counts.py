"""Counts of runs' samples and of the delay of their reports, in the process that owns the runs."""

import threading
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from replay_service.gateway.metrics.exposition import Histogram
from replay_service.gateway.metrics.table import RUN_DELAY
from replay_service.ledger.meter import Outcome


@dataclass(slots=True)
class CountsOfRun:
    """Since this process first heard of the run."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    delay: Histogram = field(default_factory=lambda: Histogram(RUN_DELAY.buckets))
    unmeasured_so_far: int | None = None
    """What the run's state said when somebody last looked."""

    def see_unmeasured(self, total: int) -> None:
        """Count what is more than at the last look; a rewind makes it less, and then nothing is counted."""
        before = total if self.unmeasured_so_far is None else self.unmeasured_so_far
        self.outcomes["unmeasured"] += max(0, total - before)
        self.unmeasured_so_far = total


class RunCounts:
    """Counts by run. Any thread may count; only one reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[str, CountsOfRun] = {}

    def add(self, run: str, outcome: Outcome, num: int) -> None:
        with self._lock:
            self._counts(run).outcomes[outcome] += num

    def observe_delay(self, run: str, seconds: float) -> None:
        with self._lock:
            self._counts(run).delay.observe(seconds)

    def see_unmeasured(self, run: str, total: int) -> None:
        """Of a run whose owner is another process, nothing is counted."""
        with self._lock:
            if run in self._of:
                self._of[run].see_unmeasured(total)

    def without(self, closed: Collection[str]) -> Mapping[str, CountsOfRun]:
        """The counts of all runs but these, which are forgotten."""
        with self._lock:
            self._of = {run: counts for run, counts in self._of.items() if run not in closed}
            return dict(self._of)

    def _counts(self, run: str) -> CountsOfRun:
        return self._of.setdefault(run, CountsOfRun())
