"""In fenced mode a plan waits for the reports of the steps that it may know; here it is found out for how long."""

from collections.abc import Callable

from replay_service.errors import AwaitingReports, StepOutOfRange
from replay_service.ledger.reports import NUM_NAMED
from replay_service.sampling.run_state import RunState, whole_rows


class Fence:
    """Remembers since when plans of a run wait for reports, on a clock that does not jump."""

    def __init__(self, run: str, seal_after_s: float, monotonic: Callable[[], float]) -> None:
        self._run = run
        self._seal_after_s = seal_after_s
        self._monotonic = monotonic
        self._refused_at: dict[int, float] = {}

    def overdue(self, state: RunState, last_step: int) -> list[int]:
        """The steps whose missing reports a plan up to `last_step` need not wait for any longer.

        The time of a step counts from the first plan that waits for it.

        Raises:
            StepOutOfRange: when more steps are to be planned at once than reports may lag behind, and those that the
                last plan may know are not all empty.
        """
        fence, next_step = state.config.fence, state.next_step
        if fence is not None and _rehearses(state, range(next_step, last_step - fence + 1)):
            raise StepOutOfRange(
                f"steps {next_step} to {last_step} of run {self._run!r} cannot be planned at once: its "
                f"reports lag {fence} steps behind its plans; ask for at most {fence} steps at once",
                next_step=next_step,
            )
        now = self._monotonic()
        self._refused_at = {step: self._refused_at.get(step, now) for step in state.awaited_before(last_step)}
        return [step for step, since in self._refused_at.items() if now - since >= self._seal_after_s]

    def pass_to(self, state: RunState, last_step: int) -> None:
        """Raises AwaitingReports when a plan up to `last_step` must wait for reports."""
        awaited = state.awaited_before(last_step)
        if awaited:
            raise AwaitingReports(
                f"the plan of step {last_step} of run {self._run!r} waits for the reports of "
                f"{len(awaited)} earlier steps; they are sealed without them after {self._seal_after_s:g} s",
                awaited_steps=awaited[:NUM_NAMED],
            )


def _rehearses(state: RunState, steps: range) -> bool:
    """Whether one of these steps, from the first unplanned one on, may hold rows; empty ones await no report."""
    return len(steps) > 0 and (state.config.is_auto or any(whole_rows(state, steps, state.carry)[0]))
