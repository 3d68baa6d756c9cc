"""What becomes of reports: which rows count, which came before or too late, and which were never asked for."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from replay_service.errors import InvalidReport
from replay_service.ledger.journal import Journal
from replay_service.ledger.reports import NUM_NAMED
from replay_service.ledger.sampled_corpus import SampledCorpus
from replay_service.sampling.events import REPORTED_ROW, Reported
from replay_service.sampling.run_state import RunState

Int64Array = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ReportOutcome:
    """What became of the rows of a report: `rejected` ones came too late, or from before a rewind."""

    accepted: int
    duplicate: int
    rejected: int


class Intake:
    """Sorts out what is reported of one run; the journal tells of what the state has forgotten."""

    def __init__(self, run: str, journal: Journal, corpus: Callable[[], SampledCorpus]) -> None:
        self._run = run
        self._journal = journal
        self._corpus = corpus

    def sorted_out(self, state: RunState, rows: np.ndarray, settle: Callable[[], None]) -> tuple[Reported, int]:
        """The event of one step's and rank's rows that await a report, and how many came too late."""
        step, rank = int(rows["step"][0]), int(rows["rank"][0])
        if not 0 <= step < state.next_step:
            raise InvalidReport(
                f"step {step} of run {self._run!r} has no plan yet (its next step is {state.next_step}); "
                "report the losses of batches that the service has served"
            )
        pending, sample_id = state.pending.get(step), np.ascontiguousarray(rows["sample_id"])
        awaited = np.zeros(len(rows), dtype=bool) if pending is None else pending.find(sample_id) >= 0
        if awaited.all():
            return Reported(step, rank, self._reported(rows)), 0
        settle()
        self._check_planned(step, sample_id[~awaited])
        num_late = int((~awaited).sum()) if self._is_over(state, step) else 0
        return Reported(step, rank, self._reported(rows[awaited])), num_late

    def _is_over(self, state: RunState, step: int) -> bool:
        """Whether the run stopped waiting for the reports of a step."""
        if step < state.next_step - state.config.report_window_steps:
            return True
        return state.config.fence is not None and self._journal.is_sealed(self._run, step)

    def _check_planned(self, step: int, sample_ids: Int64Array) -> None:
        """A sample that awaits no report was reported before, or was never planned."""
        (plan,) = self._journal.planned(self._run, step, 1)
        strangers = np.setdiff1d(sample_ids, plan.rows["sample_id"])
        if len(strangers):
            raise InvalidReport(
                f"{len(strangers)} samples were not planned for step {step} of run {self._run!r}: "
                f"{strangers[:NUM_NAMED].tolist()}; report sample ids as the batch of that step named them"
            )

    def _reported(self, rows: np.ndarray) -> np.ndarray:
        reported = np.empty(len(rows), dtype=REPORTED_ROW)
        for name in ("sample_id", "loss_nats", "num_tokens", "num_flips"):
            reported[name] = rows[name]
        reported["base_loss_nats"] = self._corpus().base_losses(np.ascontiguousarray(rows["sample_id"]))
        was_measured = (reported["num_tokens"] > 0) & np.isfinite(reported["base_loss_nats"])
        if not was_measured.all():
            for name in ("loss_nats", "base_loss_nats", "num_tokens", "num_flips"):
                reported[name][~was_measured] = 0
        return reported
