"""Windows: the plans of some steps with what their run was when they were looked up, and the latest plans in memory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from replay_service.sampling.events import Event, Planned

MOST_ROWS_KEPT: Final = 1 << 18
"""Of the latest plans of one run: 6 MiB."""


@dataclass(frozen=True, slots=True)
class Window:
    """The plans of a window of steps, in step order, all of them durable.

    Attributes:
        run: the run that they are of.
        corpus: the name of its corpus.
        corpus_fingerprint: what no later generation of that corpus changes; None where the run did not note it.
        generation: the generation of it that the run sees.
        attempt: counts the run's rewinds, from 1; the plans are those of this attempt.
        injection_ratio: as the run has it now, the decimal that was written.
        plans: one a step.
        is_new: whether some of the plans were made for this request.
    """

    run: str
    corpus: str
    corpus_fingerprint: str | None
    generation: int
    attempt: int
    injection_ratio: str
    plans: Sequence[Planned]
    is_new: bool = False


class RecentPlans:
    """The latest plans of a run, at most MOST_ROWS_KEPT rows of them and at least the last one.

    What was planned last is what all ranks ask for next, so they need not be read from the journal again. One thread at
    a time adds and forgets; any thread may find.
    """

    def __init__(self) -> None:
        self._plans: dict[int, Planned] = {}
        self._num_rows = 0

    def add(self, events: Iterable[Event]) -> None:
        """Keep the plans among new events, which are those of the next steps."""
        for event in events:
            if isinstance(event, Planned):
                self._plans[event.step] = event
                self._num_rows += len(event.rows)
        while self._num_rows > MOST_ROWS_KEPT and len(self._plans) > 1:
            oldest = next(iter(self._plans))
            self._num_rows -= len(self._plans.pop(oldest).rows)

    def find(self, first_step: int, num_steps: int) -> list[Planned] | None:
        """The plans of a window of steps, if all of them are here."""
        plans = self._plans
        # Steps are planned one after the other, and forgotten in the same order.
        if first_step not in plans or first_step + num_steps - 1 not in plans:
            return None
        try:
            return [plans[step] for step in range(first_step, first_step + num_steps)]
        except KeyError:  # forgotten meanwhile
            return None

    def forget(self) -> None:
        self._plans.clear()
        self._num_rows = 0
