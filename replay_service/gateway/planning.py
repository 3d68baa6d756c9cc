"""The planner: the owners of this process, or another process that is asked."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from starlette.concurrency import run_in_threadpool

from replay_service.ledger.journal import Journal
from replay_service.ledger.owners import Owners
from replay_service.ledger.plan_windows import Window
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


class OwnersPlan:
    """The owners in this process plan.

    Ranks of one job ask for the same steps at the same time: while a window is being planned, all who want it wait for
    that without a thread of their own.

    Args:
        max_steps_ahead: how far beyond its last planned step a run can be asked to plan.
    """

    def __init__(self, owners: Owners, journal: Journal, max_steps_ahead: int) -> None:
        self._owners = owners
        self._journal = journal
        self._max_steps_ahead = max_steps_ahead
        self._in_progress: dict[tuple[str, int, int], asyncio.Future[Window]] = {}

    async def window(self, run: str, first_step: int, num_steps: int) -> Window:
        window = self._at_hand(run, first_step, num_steps)
        if window is not None:
            return window
        key = run, first_step, num_steps
        planning = self._in_progress.get(key)
        if planning is not None:
            return replace(await asyncio.shield(planning), is_new=False)
        planning = asyncio.ensure_future(run_in_threadpool(self._plan, *key))
        self._in_progress[key] = planning
        planning.add_done_callback(lambda _: self._in_progress.pop(key))
        return await asyncio.shield(planning)

    def _at_hand(self, run: str, first_step: int, num_steps: int) -> Window | None:
        """The plans of a window of steps, if all of them were made and a look at them is a matter of microseconds."""
        # A look into a journal that is elsewhere takes longer than to wake up a thread.
        owner = self._owners.at_hand(run) if self._journal.is_embedded else None
        return None if owner is None else owner.window_at_hand(first_step, num_steps)

    def _plan(self, run: str, first_step: int, num_steps: int) -> Window:
        return self._owners.get(run).window(first_step, num_steps, self._max_steps_ahead)

    async def planned(self, run: str, first_step: int, num_steps: int) -> Sequence[Planned]:
        return await run_in_threadpool(self._journal.planned, run, first_step, num_steps)
