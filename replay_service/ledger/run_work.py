"""The work of one owner, as it tells a meter of it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np

from replay_service.ledger.intake import ReportOutcome
from replay_service.ledger.meter import Meter, Phase
from replay_service.sampling.events import Event, Planned, Reported

MOST_STEPS: Final = 4096
"""Steps whose time is remembered until they are reported."""


class RunWork:
    """Times an owner's phases, and counts what becomes of a run's samples. One thread at a time calls it."""

    def __init__(self, run: str, meter: Meter, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._run = run
        self._meter = meter
        self._monotonic = monotonic
        self._planned_at: dict[int, float] = {}

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """What is done meanwhile is of this phase."""
        began = self._monotonic()
        try:
            yield
        finally:
            self._meter.spent(phase, self._monotonic() - began)

    def waited(self, since: float) -> None:
        """The run's lock was waited for since then."""
        self._meter.spent("lock", self._monotonic() - since)

    def now(self) -> float:
        return self._monotonic()

    def committed(self, events: Sequence[Event]) -> None:
        """These events are durable now."""
        now = self._monotonic()
        for event in events:
            if isinstance(event, Planned):
                self._planned_at[event.step] = now
                self._meter.counted(self._run, "planned", len(event.rows))
            elif isinstance(event, Reported):
                self._count_reported(event, now)
        while len(self._planned_at) > MOST_STEPS:
            self._planned_at.pop(next(iter(self._planned_at)))

    def _count_reported(self, event: Reported, now: float) -> None:
        self._meter.counted(self._run, "reported", int(np.count_nonzero(event.rows["num_tokens"])))
        planned_at = self._planned_at.get(event.step)
        if planned_at is not None:
            self._meter.reported_after(self._run, now - planned_at)

    def sorted_out(self, outcomes: Sequence[ReportOutcome]) -> None:
        """Reports had these outcomes."""
        for each in outcomes:
            if each.duplicate:
                self._meter.counted(self._run, "duplicate", each.duplicate)
            if each.rejected:
                self._meter.counted(self._run, "rejected", each.rejected)
