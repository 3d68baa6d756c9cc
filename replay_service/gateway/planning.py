"""Who plans: the owners of this process, or another process that is asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.concurrency import run_in_threadpool

from replay_service.ledger.journal import Journal
from replay_service.ledger.owners import Owners
from replay_service.ledger.windows import Window
from replay_service.sampling.events import Planned


class Planner(Protocol):
    """Gives the plans of a run's steps.

    Raises, from every method:
        ReplayError: what the run's owner refuses, as the owner says it.
    """

    async def window(self, run: str, first_step: int, num_steps: int) -> Window:
        """The plans of a window of steps; those that were never asked for are made, up to the last one."""
        ...

    async def planned(self, run: str, first_step: int, num_steps: int) -> Sequence[Planned]:
        """Those plans of a window of steps that were made already."""
        ...


@dataclass(frozen=True, slots=True)
class OwnersPlan:
    """The owners in this process plan.

    Attributes:
        max_steps_ahead: how far beyond its last planned step a run can be asked to plan.
    """

    owners: Owners
    journal: Journal
    max_steps_ahead: int

    async def window(self, run: str, first_step: int, num_steps: int) -> Window:
        window = self.at_hand(run, first_step, num_steps)
        return await run_in_threadpool(self.made, run, first_step, num_steps) if window is None else window

    def at_hand(self, run: str, first_step: int, num_steps: int) -> Window | None:
        """The plans of a window of steps, if all of them were made and a look at them is a matter of microseconds."""
        # A look into a journal that is elsewhere takes longer than to wake up a thread.
        owner = self.owners.at_hand(run) if self.journal.is_embedded else None
        return None if owner is None else owner.window_at_hand(first_step, num_steps)

    def made(self, run: str, first_step: int, num_steps: int) -> Window:
        """As `window`, on this thread."""
        return self.owners.get(run).window(first_step, num_steps, self.max_steps_ahead)

    async def planned(self, run: str, first_step: int, num_steps: int) -> Sequence[Planned]:
        return await run_in_threadpool(self.journal.planned, run, first_step, num_steps)
