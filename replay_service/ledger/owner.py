"""The owner of a run: it orders the run's events, and nobody else writes them."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from replay_service.errors import AwaitingReports, InvalidReport, InvalidRun, RunClosed, RunTaken, StepOutOfRange
from replay_service.ledger.committer import Write
from replay_service.ledger.journal import Journal, RunRecord, Snapshot
from replay_service.ledger.reports import NUM_NAMED, by_step_and_rank, check_values, of_attempt, once_each
from replay_service.ledger.windows import RecentPlans, Window
from replay_service.sampling.events import (
    REPORTED_ROW,
    Adopted,
    Closed,
    Configured,
    Created,
    Event,
    Planned,
    Reported,
    Rewound,
    Sealed,
    surviving,
)
from replay_service.sampling.partition import Partition
from replay_service.sampling.plan import plan_steps
from replay_service.sampling.run_state import RunState, fold
from replay_service.sampling.state_bytes import from_bytes, to_bytes

Int64Array = NDArray[np.int64]
T = TypeVar("T")


class SampledCorpus(Protocol):
    """What a run needs of its corpus, which may grow."""

    @property
    def generation(self) -> int:
        """The latest one."""
        ...

    def partition_of(self, generation: int) -> Partition:
        """The strata as they were in a generation."""
        ...

    def base_losses(self, sample_ids: Int64Array) -> NDArray[np.float64]:
        """Base losses in nats per token, float64 [n]; NaN where a sample cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class ReportOutcome:
    """What became of the rows of a report: `rejected` ones came too late, or from before a rewind."""

    accepted: int
    duplicate: int
    rejected: int


@dataclass(frozen=True, slots=True)
class OwnerLimits:
    """How owners keep house.

    Attributes:
        snapshot_every: events between two snapshots; a restore folds about so many at most.
        seal_after_s: how long a fenced run waits for reports, from the first request that was refused for them.
    """

    snapshot_every: int = 1000
    seal_after_s: float = 600.0


DEFAULT_LIMITS: Final = OwnerLimits()


class RunOwner:
    """Holds the state of one run in memory. Events are folded in as they are written down; an answer waits until they
    are durable, and all that were before them. So reports that come together become durable by one commit."""

    def __init__(
        self,
        journal: Journal,
        record: RunRecord,
        corpus: Callable[[], SampledCorpus],
        limits: OwnerLimits = DEFAULT_LIMITS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.record = record
        self._journal = journal
        self._corpus = corpus
        self._limits = limits
        self._monotonic = monotonic
        self._refused_at: dict[int, float] = {}
        self._lock = threading.Lock()
        self._recent = RecentPlans()
        self._lease = journal.take(record.run)
        self._load()

    def _load(self) -> None:
        """The state that the journal tells: its latest snapshot, and the events after it."""
        self._recent.forget()
        latest = self._journal.latest_snapshot(self.record.run)
        self._state, self._num_events, self._attempt = restored(latest, self.record.created)
        self._last_snapshot = self._num_events
        for entry in self._journal.entries(self.record.run, self._num_events):
            # A rewind leaves a snapshot, so there is none among the events after the latest one.
            assert not isinstance(entry.event, Rewound | Created)
            fold(self._state, entry.event)
            self._num_events += 1
        self._last_write: Write | None = None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else writes or reads the state meanwhile. After a failed write it is read from the journal again.

        What has nothing to write looks whether the run is still this owner's: else its answer might be of the past.
        """
        with self._lock:
            failure = self._lease.failure
            if isinstance(failure, RunTaken):
                raise failure
            if failure is not None:
                self._load()
                self._lease = self._lease.renewed()
            before = self._last_write
            try:
                yield
            finally:
                if self._last_write is before:
                    self._journal.check(self._lease)

    @property
    def is_taken(self) -> bool:
        """Whether another owner has taken the run; this one refuses everything from then on."""
        return isinstance(self._lease.failure, RunTaken)

    @property
    def attempt(self) -> int:
        """Counts the run's rewinds, from 1; reports of an earlier attempt are stale."""
        return self._attempt

    def plan(self, first_step: int, num_steps: int, max_steps_ahead: int) -> Sequence[Planned]:
        """The plans of a window of steps, as `window` gives them."""
        return self.window(first_step, num_steps, max_steps_ahead).plans

    def window(self, first_step: int, num_steps: int, max_steps_ahead: int) -> Window:
        """The plans of a window of steps; those that were never asked for are made, up to the last one.

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
            if last_step >= next_step:
                if self._state.closed:
                    raise RunClosed(f"run {self.record.run!r} is closed and plans no step from {next_step} on")
                self._await_reports(last_step)
                self._adopt_if_due()
                self._commit(plan_steps(self._state, self._partition(), last_step))
            window = self._window(self._recent.find(first_step, num_steps) or ())
            written = self._last_write
        _until_durable(written)
        # Read after the attempt: if a rewind comes between, reports of these plans are stale, and never mistaken.
        return window if window.plans else self._read(window, first_step, num_steps)

    def window_at_hand(self, first_step: int, num_steps: int) -> Window | None:
        """The plans of a window of steps, if they are in memory and durable and nobody holds the owner just now.

        It costs one look into the journal, whether the run is still this owner's.

        Raises:
            RunTaken: when it is not.
        """
        if not self._lock.acquire(blocking=False):
            return None
        try:
            plans = self._recent.find(first_step, num_steps)
            is_durable = self._last_write is None or self._last_write.is_settled
            if plans is None or not is_durable or self._lease.failure is not None:
                return None
            lease, window = self._lease, self._window(plans)
        finally:
            self._lock.release()
        self._journal.check(lease)
        return window

    def _window(self, plans: Sequence[Planned]) -> Window:
        """What the run is now, with these plans."""
        state = self._state
        return Window(
            self.record.run,
            self.record.corpus,
            state.generation,
            self._attempt,
            state.config.injection_ratio,
            plans,
        )

    def _read(self, window: Window, first_step: int, num_steps: int) -> Window:
        return replace(window, plans=self._journal.planned(self.record.run, first_step, num_steps))

    def report(self, rows: np.ndarray) -> ReportOutcome:
        """Fold the losses `rows` (LOSS_ROW [n]) in, all of them or none.

        Raises:
            InvalidReport: when a loss is not finite, a count is impossible, a step has no plan, or a sample was not
                planned for its step.
        """
        check_values(rows)
        with self._alone():
            current = of_attempt(rows, self._attempt)
            groups = [self._sorted_out(group) for group in by_step_and_rank(once_each(current))]
            events = [event for event, _ in groups if len(event.rows)]
            if events:
                self._commit(events)
            written = self._last_write
        _until_durable(written)
        accepted = sum(len(event.rows) for event in events)
        rejected = len(rows) - len(current) + sum(late for _, late in groups)
        return ReportOutcome(accepted, len(rows) - accepted - rejected, rejected)

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
            written = self._last_write
        _until_durable(written)

    def adopt(self, generation: int | None = None) -> None:
        """See a later generation of the corpus from the first unplanned step on; by default the latest.

        Raises:
            InvalidRun: when the corpus has no such generation, or the run sees a later one.
        """
        with self._alone():
            latest, seen = self._corpus().generation, self._state.generation
            wanted = latest if generation is None else generation
            if not seen <= wanted <= latest:
                raise InvalidRun(
                    f"run {self.record.run!r} sees generation {seen} of corpus {self.record.corpus!r}, whose latest is "
                    f"{latest}; it cannot adopt generation {wanted}",
                    generation=seen,
                )
            self._adopt(wanted)
            written = self._last_write
        _until_durable(written)

    def _partition(self) -> Partition:
        """The strata that the run sees."""
        generation = self._state.generation
        partition = self._corpus().partition_of(generation)
        if not np.array_equal(partition.sizes, self._state.walk.sizes):
            raise InvalidRun(
                f"generation {generation} of corpus {self.record.corpus!r} is not the one that run "
                f"{self.record.run!r} sees: its strata have other sizes; bring the corpus back, or create a new run"
            )
        return partition

    def _adopt(self, generation: int) -> None:
        """See a generation if it is a later one of the corpus that the run sees; another process may be behind."""
        if generation > self._state.generation:
            self._partition()
            sizes = tuple(self._corpus().partition_of(generation).sizes.tolist())
            self._commit([Adopted(self._state.next_step - 1, generation, sizes)])

    def _adopt_if_due(self) -> None:
        every, since = self._state.config.adopt_every_steps, self._state.generation_since
        if every and self._state.next_step >= since + every:
            self._adopt(self._corpus().generation)

    def close(self) -> None:
        """Plan no further step; reports of planned steps still count. A rewind to an earlier step opens it again."""
        with self._alone():
            if not self._state.closed:
                self._commit([Closed(self._state.next_step - 1)])
            written = self._last_write
        _until_durable(written)

    def rewind(self, step: int) -> None:
        """Go back to the state that the run had after `step`; -1 is the beginning.

        What was planned, reported and configured of later steps is forgotten, and a new attempt begins.

        Raises:
            StepOutOfRange: when the step has no plan. Nothing is changed then.
        """
        with self._alone():
            _until_durable(self._last_write)
            if not -1 <= step < self._state.next_step:
                raise StepOutOfRange(
                    f"run {self.record.run!r} cannot be rewound to step {step}: it has plans up to step "
                    f"{self._state.next_step - 1}; -1 is the beginning",
                    next_step=self._state.next_step,
                )
            state = self._state_after(step)
            seq, attempt = self._num_events, self._attempt + 1
            snapshot = Snapshot(seq + 1, attempt, state.next_step, to_bytes(state))
            self._journal.append_rewind(self._lease, seq, Rewound(step), snapshot).wait()
            self._state, self._attempt = state, attempt
            self._recent.forget()
            self._num_events = self._last_snapshot = seq + 1

    def _state_after(self, step: int) -> RunState:
        """The fold of all events of steps up to `step`, from the latest snapshot that holds no later one."""
        latest = self._journal.latest_snapshot(self.record.run, most_next_step=step + 1)
        state, first_seq, _ = restored(latest, self.record.created)
        entries = (entry.event for entry in self._journal.entries(self.record.run, first_seq))
        for event in surviving((event for event in entries if not isinstance(event, Rewound | Created)), step):
            fold(state, event)
        return state

    def read(self, view: Callable[[RunState], T]) -> T:
        """What `view` makes of the state, which must not escape from it: events wait until it returns."""
        with self._alone():
            return view(self._state)

    def _await_reports(self, last_step: int) -> None:
        """Refuse to plan up to `last_step` while a fenced run lacks reports for it, but seal steps that lack them long.

        The time counts from the first refusal, on a clock that does not jump.
        """
        fence, next_step = self._state.config.fence, self._state.next_step
        if fence is not None and last_step - fence >= next_step:
            raise StepOutOfRange(
                f"steps {next_step} to {last_step} of run {self.record.run!r} cannot be planned at once: its "
                f"reports lag {fence} steps behind its plans; ask for at most {fence} steps at once",
                next_step=next_step,
            )
        awaited = self._state.awaited_before(last_step)
        now = self._monotonic()
        self._refused_at = {step: self._refused_at.get(step, now) for step in awaited}
        overdue = [step for step in awaited if now - self._refused_at[step] >= self._limits.seal_after_s]
        if overdue:
            self._commit([Sealed(step) for step in overdue])
            _until_durable(self._last_write)
        if len(overdue) < len(awaited):
            raise AwaitingReports(
                f"the plan of step {last_step} of run {self.record.run!r} waits for the reports of "
                f"{len(awaited) - len(overdue)} earlier steps; they are sealed without them after "
                f"{self._limits.seal_after_s:g} s",
                awaited_steps=awaited[:NUM_NAMED],
            )

    def _commit(self, events: Sequence[Event]) -> None:
        due = self._num_events - self._last_snapshot >= self._limits.snapshot_every
        snapshot = self._snapshot() if due else None
        self._last_write = self._journal.append(self._lease, self._attempt, self._num_events, events, snapshot)
        if snapshot is not None:
            self._last_snapshot = snapshot.seq
        for event in events:
            fold(self._state, event)
        self._recent.add(events)
        self._num_events += len(events)

    def _snapshot(self) -> Snapshot:
        """The state before the events that are about to be committed."""
        return Snapshot(self._num_events, self._attempt, self._state.next_step, to_bytes(self._state))

    def _sorted_out(self, rows: np.ndarray) -> tuple[Reported, int]:
        """The event of one step's and rank's rows that await a report, and how many came too late."""
        step, rank = int(rows["step"][0]), int(rows["rank"][0])
        if not 0 <= step < self._state.next_step:
            raise InvalidReport(
                f"step {step} of run {self.record.run!r} has no plan yet (its next step is {self._state.next_step}); "
                "report the losses of batches that the service has served"
            )
        pending, sample_id = self._state.pending.get(step), np.ascontiguousarray(rows["sample_id"])
        awaited = np.zeros(len(rows), dtype=bool) if pending is None else pending.find(sample_id) >= 0
        if awaited.all():
            return Reported(step, rank, self._reported(rows)), 0
        self._check_planned(step, sample_id[~awaited])
        num_late = int((~awaited).sum()) if self._is_over(step) else 0
        return Reported(step, rank, self._reported(rows[awaited])), num_late

    def _is_over(self, step: int) -> bool:
        """Whether the run stopped waiting for the reports of a step."""
        config, next_step = self._state.config, self._state.next_step
        if step < next_step - config.report_window_steps:
            return True
        return config.fence is not None and self._journal.is_sealed(self.record.run, step)

    def _check_planned(self, step: int, sample_ids: Int64Array) -> None:
        """A sample that awaits no report was reported before, or was never planned."""
        _until_durable(self._last_write)
        (plan,) = self._journal.planned(self.record.run, step, 1)
        strangers = np.setdiff1d(sample_ids, plan.rows["sample_id"])
        if len(strangers):
            raise InvalidReport(
                f"{len(strangers)} samples were not planned for step {step} of run {self.record.run!r}: "
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


def _until_durable(write: Write | None) -> None:
    """Return when `write` is durable, and all that were before it."""
    if write is not None:
        write.wait()


def restored(snapshot: Snapshot | None, created: Created) -> tuple[RunState, int, int]:
    """The state in a snapshot, the number of events in it and the attempt; without one, those of a new run."""
    if snapshot is None:
        return RunState.initial(created), 1, 1
    return from_bytes(snapshot.state), snapshot.seq, snapshot.attempt
