"""The owner of a run: the one writer of the run's events, which puts them in order."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np
from sqlalchemy.exc import SQLAlchemyError

from replay_service.errors import (
    InvalidReport,
    InvalidRun,
    RunClosed,
    RunOpen,
    RunTaken,
    StepOutOfRange,
)
from replay_service.ledger import restoring
from replay_service.ledger.combining import Combiner
from replay_service.ledger.damaged_journals import CONTENT_ERRORS
from replay_service.ledger.fence import Fence
from replay_service.ledger.intake import HandedIn, Intake, ReportOutcome
from replay_service.ledger.journal import Journal
from replay_service.ledger.meter import NO_METER, Meter
from replay_service.ledger.plan_windows import RecentPlans, Window
from replay_service.ledger.records import Snapshot
from replay_service.ledger.reports import CURRENT_ATTEMPT, check_values
from replay_service.ledger.run_view import RunView
from replay_service.ledger.run_work import RunWork
from replay_service.ledger.sampled_corpus import SampledCorpus, corpus_of_run, partition_seen
from replay_service.sampling.events import (
    Adopted,
    Closed,
    Configured,
    Event,
    Finished,
    Planned,
    Rewound,
    Sealed,
    Trained,
)
from replay_service.sampling.fold import fold_all
from replay_service.sampling.partition import Partition
from replay_service.sampling.plan import adjustment_due, last_before_decision, plan_steps
from replay_service.sampling.state_bytes import to_bytes

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OwnerLimits:
    """Limits of an owner.

    Attributes:
        snapshot_every: events between two snapshots; a restore folds about this many events at most.
        seal_after_s: how long a fenced run waits for reports, from the first request that was refused for lack of
            them, seconds.
    """

    snapshot_every: int = 1000
    seal_after_s: float = 600.0


DEFAULT_LIMITS: Final = OwnerLimits()


class RunOwner:
    """Holds the state of one run in memory, which one thread at a time uses.

    An event is checked, made durable, and folded in; then the request is answered. Reports that wait for the lock are
    folded in together, and made durable by one commit.

    Args:
        corpus_of: gives a corpus by name.
        meter: gets the times and counts of the owner's work.

    Raises:
        UnknownRun: when there is no such run.
        RunTaken: when another process takes the run while it is read.
    """

    def __init__(
        self,
        journal: Journal,
        run: str,
        corpus_of: Callable[[str], SampledCorpus],
        limits: OwnerLimits = DEFAULT_LIMITS,
        monotonic: Callable[[], float] = time.monotonic,
        meter: Meter = NO_METER,
    ) -> None:
        self._journal = journal
        self._lease = journal.take(run)
        meter.took()
        self._work = RunWork(run, meter, monotonic)
        # The record is read after the lease is taken: a new run of the same name would now be noticed.
        self.record = record = journal.run(run)
        self._corpus_of = corpus_of
        self._snapshot_every = limits.snapshot_every
        self._fence = Fence(record.run, limits.seal_after_s, monotonic)
        self._intake = Intake(record.run, journal, self.corpus)
        self._combiner = Combiner(self._take_in)
        self._lock = threading.Lock()
        self._recent = RecentPlans()
        self._load()

    def _load(self) -> None:
        self._recent.forget()
        try:
            restored = restoring.latest(self._journal, self.record)
        except SQLAlchemyError:
            raise
        except Exception as error:
            # Where another process has deleted the run and created it again, the rows read are of two runs.
            self._journal.check(self._lease)
            if not isinstance(error, CONTENT_ERRORS):
                raise
            run = self.record.run
            raise self._journal.damaged.note(run, self._journal.point(run).incarnation, error) from error
        self._journal.damaged.forget(self.record.run)
        self._state, self._num_events = restored.state, restored.num_events
        self._attempt, self._last_snapshot = restored.attempt, restored.snapshot_seq

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of the state. After a failed write the state is restored from the journal first.

        A request that wrote nothing checks that the run is still this owner's: else its answer might be out of date.
        """
        asked_at = self._work.now()
        with self._lock:
            self._work.waited(asked_at)
            failure = self._lease.failure
            if isinstance(failure, RunTaken):
                raise failure
            if failure is not None:
                self._load()
                self._lease = self._lease.renewed()
            before = self._num_events
            try:
                yield
            finally:
                if self._num_events == before and self._lease.failure is None:
                    self._journal.check(self._lease)

    @property
    def epoch(self) -> int:
        """The number of this owner among those of the run; later ones have greater numbers."""
        return self._lease.epoch

    @property
    def is_taken(self) -> bool:
        """Whether another owner has taken the run; this one refuses everything from then on."""
        return isinstance(self._lease.failure, RunTaken)

    @property
    def attempt(self) -> int:
        """Counts the run's rewinds, from 1; reports of an earlier attempt are stale."""
        return self._attempt

    def corpus(self) -> SampledCorpus:
        """The run's corpus; raises CorpusReplaced when another one has its name, CorpusUnavailable when none has."""
        return corpus_of_run(self.record, self._corpus_of)

    def window(self, first_step: int, num_steps: int, max_steps_ahead: int) -> Window:
        """The plans of a window of steps. Steps without a plan are planned first, up to the last one of the window.

        Raises:
            StepOutOfRange: when the window starts before step 0 or ends more than `max_steps_ahead` after the last
                planned step. Nothing is planned then.
        """
        last_step = first_step + num_steps - 1
        with self._alone():
            next_step = self._state.next_step
            if first_step < 0 or last_step >= next_step + max_steps_ahead:
                raise StepOutOfRange(
                    f"steps {first_step} to {last_step} of run {self.record.run!r} cannot be planned: its next step is "
                    f"{next_step}, and a request may reach from step 0 to step {next_step + max_steps_ahead - 1}",
                    next_step=next_step,
                )
            is_new = last_step >= next_step
            if is_new:
                if self._state.closed:
                    raise RunClosed(f"run {self.record.run!r} is closed and plans no step from {next_step} on")
                self._pass_fence(last_step)
                self._adopt_if_due()
                self._plan_through(last_step)
            window = self._window(self._recent.find(first_step, num_steps) or (), is_new)
        # The plans are read after the attempt: if a rewind comes between, reports of these plans are stale.
        return window if window.plans else self._read(window, first_step, num_steps)

    def window_at_hand(self, first_step: int, num_steps: int) -> Window | None:
        """The plans of a window of steps if they are in memory, without waiting for the lock; else None.

        It costs one query of the journal: whether the run is still this owner's.

        Raises:
            RunTaken: when it is not.
        """
        lease, attempt = self._lease, self._attempt
        plans = self._recent.find(first_step, num_steps)
        if plans is None or lease.failure is not None:
            return None
        window = self._window(plans)
        # A rewind forgets plans before it begins an attempt, so these plans are of the attempt if it still stands.
        if window.attempt != attempt:
            return None
        self._journal.check(lease)
        return window

    def _window(self, plans: Sequence[Planned], is_new: bool = False) -> Window:
        """A window of these plans, with the run as it is now."""
        state, record = self._state, self.record
        return Window(
            run=record.run,
            corpus=record.corpus,
            corpus_fingerprint=record.created.corpus_fingerprint,
            generation=state.generation,
            attempt=self._attempt,
            injection_ratio=state.ratio_now(),
            plans=plans,
            is_new=is_new,
        )

    def _read(self, window: Window, first_step: int, num_steps: int) -> Window:
        return replace(window, plans=self._journal.planned(self.record.run, first_step, num_steps))

    def _plan_through(self, last_step: int) -> None:
        while self._state.next_step <= last_step:
            adjusted = adjustment_due(self._state)
            if adjusted is not None:
                self._commit([adjusted])
            until = last_before_decision(self._state, last_step)
            with self._work.phase("plan"):
                plans = plan_steps(self._state, self._partition(), until)
            self._commit(plans)

    def report(self, rows: np.ndarray) -> ReportOutcome:
        """Fold in the losses `rows` (LOSS_ROW [n]), all of them or none.

        Raises:
            InvalidReport: when a loss is not finite, a count is impossible, a step has no plan, or a sample was not
                planned for its step.
        """
        check_values(rows)
        report = HandedIn(rows)
        self._combiner.submit(report)
        return report.answer()

    def _take_in(self, reports: Sequence[HandedIn]) -> None:
        """Fold in the reports of many threads with one commit; one by one where one of them is invalid."""
        try:
            with self._alone():
                rows = [each.rows for each in reports]
                events, outcomes = self._intake.sort_out(self._state, self._attempt, rows)
                if events:
                    self._commit(events)
                self._work.sorted_out(outcomes)
            for each, outcome in zip(reports, outcomes, strict=True):
                each.accept(outcome)
        except InvalidReport as error:
            if len(reports) == 1:
                reports[0].refuse(error)
            else:
                for each in reports:
                    self._take_in([each])
        except Exception as error:
            # Every waiting thread must get the error.
            for each in reports:
                each.refuse(error)

    def count_trained(self, trained: Trained, attempt: int = CURRENT_ATTEMPT) -> bool:
        """Add what a rank has trained on; False if it was counted before, or is of an attempt before a rewind."""
        with self._alone():
            is_stale = attempt not in (CURRENT_ATTEMPT, self._attempt)
            if is_stale or self._state.trained.has_reported(trained.rank, trained.first_step):
                return False
            self._commit([trained])
            return True

    def configure(self, changes: dict[str, object]) -> None:
        """Change the configuration from the first unplanned step on; the policy gets a new version.

        Raises:
            InvalidRun: when an attribute is unknown, fixed for the life of a run, or out of range.
        """
        with self._alone():
            try:
                config = self._state.config.changed(**changes)
            except ValueError as error:
                raise InvalidRun(str(error)) from error
            if config != self._state.config:
                self._commit([Configured(self._state.next_step - 1, config)])

    def adopt(self, generation: int | None = None) -> None:
        """See a later generation of the corpus from the first unplanned step on; by default the latest.

        Raises:
            InvalidRun: when the corpus has no such generation, or the run sees a later one.
        """
        with self._alone():
            latest, seen = self.corpus().generation, self._state.generation
            wanted = latest if generation is None else generation
            if not seen <= wanted <= latest:
                raise InvalidRun(
                    f"run {self.record.run!r} sees generation {seen} of corpus {self.record.corpus!r}, whose latest is "
                    f"{latest}; it cannot adopt generation {wanted}",
                    generation=seen,
                )
            self._adopt(wanted)

    def _partition(self) -> Partition:
        """The strata that the run sees."""
        return partition_seen(self.record, self._state, self.corpus())

    def _adopt(self, generation: int) -> None:
        """Adopt a generation unless the run sees it already, or a later one, as where another process is behind."""
        if generation > self._state.generation:
            self._partition()
            sizes = tuple(self.corpus().partition_of(generation).sizes.tolist())
            self._commit([Adopted(self._state.next_step - 1, generation, sizes)])

    def _adopt_if_due(self) -> None:
        every, since = self._state.config.adopt_every_steps, self._state.generation_since
        if every and self._state.next_step >= since + every:
            self._adopt(self.corpus().generation)

    def close(self) -> None:
        """Plan no further step; reports of planned steps still count. A rewind to an earlier step opens it again."""
        with self._alone():
            if not self._state.closed:
                self._commit([Closed(self._state.next_step - 1)])

    def finish(self, num_steps: int, attempt: int = CURRENT_ATTEMPT) -> None:
        """Note that the job has ended after `num_steps` steps; ignored where the job said so before a rewind."""
        with self._alone():
            finished = Finished(self._state.next_step - 1, num_steps)
            if attempt in (CURRENT_ATTEMPT, self._attempt) and finished.end != self._state.job_end:
                self._commit([finished])

    def delete(self) -> None:
        """Remove the run and its journal for good.

        Raises:
            RunOpen: when it is not closed.
        """
        with self._alone():
            if not self._state.closed:
                raise RunOpen(f"run {self.record.run!r} is not closed; close it first, so that no job goes on with it")
            self._journal.delete(self._lease)

    def rewind(self, step: int) -> None:
        """Go back to the state that the run had after `step`; -1 is the beginning.

        Plans, reports and configurations of later steps are forgotten, and a new attempt begins.

        Raises:
            StepOutOfRange: when the step has no plan. Nothing is changed then.
        """
        with self._alone():
            if not -1 <= step < self._state.next_step:
                raise StepOutOfRange(
                    f"run {self.record.run!r} cannot be rewound to step {step}: it has plans up to step "
                    f"{self._state.next_step - 1}; -1 is the beginning",
                    next_step=self._state.next_step,
                )
            state = restoring.after_step(self._journal, self.record, step)
            seq, attempt = self._num_events, self._attempt + 1
            snapshot = Snapshot(seq + 1, attempt, state.next_step, to_bytes(state))
            self._journal.append_rewind(self._lease, seq, Rewound(step), snapshot, state)
            self._recent.forget()
            self._state, self._attempt = state, attempt
            self._num_events = self._last_snapshot = seq + 1

    def look(self, see: Callable[[RunView], T]) -> T:
        """The result of `see` on the run as it is now; nothing is restored for it.

        Raises:
            UnknownRun: when the run was deleted.
            RunTaken: when another process has taken it.
            JournalUnavailable: when the last write failed, so that the state may differ from the journal's.
        """
        with self._lock:
            if self._lease.failure is not None:
                raise self._lease.failure
            point = self._journal.point(self.record.run)
            self._lease.check(point.owner_epoch)
            return see(RunView(self.record, self._state, point))

    def _pass_fence(self, last_step: int) -> None:
        """Refuse to plan up to `last_step` while reports are missing; seal the steps that have lacked them too long."""
        overdue = self._fence.overdue(self._state, last_step)
        if overdue:
            self._commit([Sealed(step) for step in overdue])
        self._fence.pass_to(self._state, last_step)

    def _commit(self, events: Sequence[Event]) -> None:
        due = self._num_events - self._last_snapshot >= self._snapshot_every
        snapshot = self._snapshot() if due else None
        with self._work.phase("commit"):
            self._journal.append(self._lease, self._attempt, self._num_events, events, snapshot)
        if snapshot is not None:
            self._last_snapshot = snapshot.seq
        with self._work.phase("fold"):
            fold_all(self._state, events)
        self._work.committed(events)
        self._recent.add(events)
        self._num_events += len(events)

    def _snapshot(self) -> Snapshot:
        """The state before the events that are about to be committed."""
        return Snapshot(self._num_events, self._attempt, self._state.next_step, to_bytes(self._state))
