"""Outcomes of reports: which rows count, which came before or too late, and which were never asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from replay_service.errors import InvalidReport
from replay_service.ledger.journal import Journal
from replay_service.ledger.reports import NUM_NAMED, by_step_and_rank, in_order_of_steps, is_current
from replay_service.ledger.sampled_corpus import SampledCorpus
from replay_service.sampling.events import REPORTED_ROW, Reported, stacked
from replay_service.sampling.pending import Awaited
from replay_service.sampling.run_state import RunState
from replay_service.sampling.step_slices import step_slices
from replay_service.wire.losses import GAINS_NOT_TOLD

Int64Array = NDArray[np.int64]

_ACCEPTED: Final = 0
_DUPLICATE: Final = 1
_REJECTED: Final = 2
"""Outcomes of a row, in the order of the members of ReportOutcome."""


@dataclass(frozen=True, slots=True)
class ReportOutcome:
    """Outcome of the rows of a report: `rejected` ones came too late, or from before a rewind."""

    accepted: int
    duplicate: int
    rejected: int


@dataclass(slots=True, eq=False)
class HandedIn:
    """A report of a thread that waits for its answer, which another thread may find."""

    rows: np.ndarray
    """LOSS_ROW [n]."""
    _outcome: ReportOutcome | None = field(default=None, init=False)
    _failure: Exception | None = field(default=None, init=False)

    def accept(self, outcome: ReportOutcome) -> None:
        self._outcome = outcome

    def refuse(self, failure: Exception) -> None:
        self._failure = failure

    def answer(self) -> ReportOutcome:
        """Its outcome; raises the error that it was refused with."""
        if self._failure is not None:
            raise self._failure
        assert self._outcome is not None
        return self._outcome


class Intake:
    """Sorts out what is reported of one run; the journal tells of what the state has forgotten.

    Reports that come together are sorted out together, in calls of numpy that hardly cost more than for one of them.
    """

    def __init__(self, run: str, journal: Journal, corpus: Callable[[], SampledCorpus]) -> None:
        self._run = run
        self._journal = journal
        self._corpus = corpus

    def sort_out(
        self, state: RunState, attempt: int, reports: Sequence[np.ndarray]
    ) -> tuple[list[Reported], list[ReportOutcome]]:
        """The events that reports (LOSS_ROW [n] each) make, by step and rank, and what became of each report.

        Args:
            state: the run's, which is left as it is.
            attempt: the run's current one.
            reports: in the order in which they came; of equal samples of a step the first counts.

        Raises:
            InvalidReport: when a step has no plan, or a sample was not planned for its step.
        """
        rows = stacked(reports)
        fate = np.where(is_current(rows, attempt), _DUPLICATE, _REJECTED)
        if state.config.signal == "net_flip":
            self._check_gains(rows)
        step, sample_id = (np.ascontiguousarray(rows[name]) for name in ("step", "sample_id"))
        places = in_order_of_steps(step, (fate == _DUPLICATE).nonzero()[0])
        fates = fate[places] = self._fates(state, step[places], sample_id[places])
        accepted = rows.take(places[fates == _ACCEPTED])
        return self._events(accepted), _outcomes(fate, [len(each) for each in reports])

    def _check_gains(self, rows: np.ndarray) -> None:
        missing = np.flatnonzero((rows["num_gains"] == GAINS_NOT_TOLD) & (rows["num_tokens"] > 0))
        if len(missing):
            raise InvalidReport(
                f"{len(missing)} of {len(rows)} rows do not tell num_gains, and the signal of run {self._run!r} is "
                "net_flip; report them with num_gains, by a client that counts them, or change the signal to "
                "token_flip; nothing was folded in",
                rows=missing[:NUM_NAMED].tolist(),
            )

    def _fates(self, state: RunState, step: Int64Array, sample_id: Int64Array) -> Int64Array:
        """Outcomes of rows in the order of their steps, int64 [n]."""
        slices = step_slices(step)
        are_first = Awaited(state.pending, slices, sample_id).are_first()
        fates = np.where(are_first, _ACCEPTED, _DUPLICATE)
        if np.count_nonzero(are_first) < len(step):
            for each, begin, end in slices:
                others = begin + np.flatnonzero(~are_first[begin:end])
                if len(others):
                    self._check_planned(state, each, sample_id[others])
                    fates[others] = _REJECTED if self._is_over(state, each) else _DUPLICATE
        return fates

    def _is_over(self, state: RunState, step: int) -> bool:
        """Whether the run stopped waiting for the reports of a step."""
        if step < state.next_step - state.config.report_window_steps:
            return True
        return state.config.fence is not None and self._journal.is_sealed(self._run, step)

    def _check_planned(self, state: RunState, step: int, sample_ids: Int64Array) -> None:
        """A sample that awaits no report was reported before, or was never planned."""
        if not 0 <= step < state.next_step:
            raise InvalidReport(
                f"step {step} of run {self._run!r} has no plan yet (its next step is {state.next_step}); "
                "report the losses of batches that the service has served"
            )
        (plan,) = self._journal.planned(self._run, step, 1)
        strangers = np.setdiff1d(sample_ids, plan.rows["sample_id"])
        if len(strangers):
            raise InvalidReport(
                f"{len(strangers)} samples were not planned for step {step} of run {self._run!r}: "
                f"{strangers[:NUM_NAMED].tolist()}; report sample ids as the batch of that step named them"
            )

    def _events(self, rows: np.ndarray) -> list[Reported]:
        """One event a step and rank, of rows that await a report, in the order of their steps."""
        if not len(rows):
            return []
        rows, groups = by_step_and_rank(rows)
        reported = self._reported(rows)
        return [Reported(step, rank, reported[first:end]) for step, rank, first, end in groups]

    def _reported(self, rows: np.ndarray) -> np.ndarray:
        reported = np.empty(len(rows), dtype=REPORTED_ROW)
        for name in ("sample_id", "loss_nats", "num_tokens", "num_flips", "num_gains"):
            reported[name] = rows[name]
        base = self._corpus().base_results(np.ascontiguousarray(rows["sample_id"]))
        reported["base_loss_nats"] = base.loss_nats
        was_measured = base.measured(reported["num_tokens"])
        _check_possible_gains(reported, was_measured & base.too_many_gains(reported["num_gains"]))
        if np.count_nonzero(was_measured) < len(rows):
            for name in ("loss_nats", "base_loss_nats", "num_tokens", "num_flips", "num_gains"):
                reported[name][~was_measured] = 0
        return reported


def _check_possible_gains(rows: np.ndarray, is_wrong: NDArray[np.bool_]) -> None:
    """Raises InvalidReport when some rows tell of more gains than the base model had wrong predictions."""
    if np.count_nonzero(is_wrong):
        samples = rows["sample_id"][is_wrong]
        raise InvalidReport(
            f"{len(samples)} of {len(rows)} rows tell of more num_gains than the base model had wrong predictions in "
            f"the sample (first in sample {samples[0]}); a gain is a prediction that the base model got wrong and the "
            "tuned one gets right; nothing was folded in"
        )


def _outcomes(fate: Int64Array, lengths: Sequence[int]) -> list[ReportOutcome]:
    """Outcomes of each report's rows, which stand one report after the other."""
    if not np.count_nonzero(fate != _ACCEPTED):
        return [ReportOutcome(length, 0, 0) for length in lengths]
    report = np.repeat(np.arange(len(lengths)), lengths)
    counts = np.bincount(report * 3 + fate, minlength=3 * len(lengths)).reshape(-1, 3)
    return [ReportOutcome(*each) for each in counts.tolist()]
