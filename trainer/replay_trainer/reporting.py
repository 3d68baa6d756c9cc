"""Reports to the service, in the background: losses of rehearsed rows, and counts of what was trained on."""

import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, NoReturn

import numpy as np
import structlog

from replay_service.sampling.trained import TrainedCounts
from replay_service.wire.losses import LOSS_ROW
from replay_trainer.client import ReplayClient, ReportResult
from replay_trainer.processes import check_process, not_for_others

MOST_ROWS_AT_ONCE: Final = 1 << 14
"""Of one request: about half a megabyte."""

SECONDS_BETWEEN_COUNTS: Final = 10.0
"""Between two reports of what was trained on, at least, unless all that is to be reported is waited for."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _TrainedSteps:
    """What a rank has trained on in some steps."""

    rank: int
    first_step: int
    next_step: int
    counts: TrainedCounts
    attempt: int


@dataclass(slots=True)
class LossReporter:
    """Sends losses in the background, in order; an error comes up at the next `send` or at `flush`.

    Rows that the service has already, or that are not of its current plans, have no effect: they are counted, and the
    log says so once.

    What comes while a report is on its way waits, and goes with the next one: a service that takes longer to make a
    report durable than the job takes for a step gets longer reports, not a longer queue of them.
    """

    client: ReplayClient
    run: str
    num_accepted: int = 0
    num_duplicate: int = 0
    """Rows whose loss the service had already; a report that was repeated after a fault of the network has some too."""
    num_rejected: int = 0
    """Rows that are not of the plans in force, such as those of before a rewind."""
    num_unmeasured: int = 0
    """Rows sent that could not be measured: the service could not read them, or their loss was not finite."""
    _waiting: deque[np.ndarray] = field(default_factory=deque, init=False, repr=False)
    _trained: deque[_TrainedSteps] = field(default_factory=deque, init=False, repr=False)
    _sent: deque[Future[None]] = field(default_factory=deque, init=False, repr=False)
    """Each sends all that waits when it runs, so that one that has not begun yet is enough."""
    _executor: ThreadPoolExecutor = field(init=False, repr=False)
    _process: int = field(default_factory=os.getpid, init=False, repr=False)
    _has_warned: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="losses")

    def send(self, rows: np.ndarray) -> None:
        """Report losses (LOSS_ROW [n]) without waiting for the answer.

        Raises:
            InvalidTraining: in a process that was forked from the reporter's own.
            ServiceError: of an earlier report, as ReplayClient does.
        """
        self._raise_failure()
        self.num_unmeasured += len(rows) - int(np.count_nonzero(rows["num_tokens"]))
        if len(rows):
            self._waiting.append(rows)
            self._send_if_idle()

    def send_trained(self, rank: int, first_step: int, next_step: int, counts: TrainedCounts, attempt: int) -> None:
        """Report what a rank has trained on in some steps, likewise; raises as `send` does."""
        self._raise_failure()
        self._trained.append(_TrainedSteps(rank, first_step, next_step, counts, attempt))
        self._send_if_idle()

    def flush(self) -> None:
        """Wait until all that was sent is durable; raises as `send` does."""
        check_process(self._process, "a LossReporter")
        while self._sent:
            self._sent.popleft().result()

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)

    def __reduce__(self) -> NoReturn:
        raise not_for_others("LossReporter")

    def _raise_failure(self) -> None:
        check_process(self._process, "a LossReporter")
        while self._sent and self._sent[0].done():
            self._sent.popleft().result()

    def _send_if_idle(self) -> None:
        if not self._sent or self._sent[-1].running() or self._sent[-1].done():
            self._send_waiting()

    def _send_waiting(self) -> None:
        self._sent.append(self._executor.submit(self._report_waiting))

    def _report_waiting(self) -> None:
        while self._waiting or self._trained:
            try:
                if self._waiting:
                    self._report_losses()
                else:
                    self._report_trained()
            except BaseException:
                if self._waiting or self._trained:  # what is behind a report that failed goes nevertheless
                    self._send_waiting()
                raise

    def _report_losses(self) -> None:
        rows: list[np.ndarray] = []
        while self._waiting and sum(map(len, rows)) < MOST_ROWS_AT_ONCE:
            rows.append(self._waiting.popleft())
        result = self.client.report(self.run, _joined(rows))
        self.num_accepted += result.accepted
        self.num_duplicate += result.duplicate
        self.num_rejected += result.rejected
        self._warn_once(result)

    def _report_trained(self) -> None:
        steps = self._trained.popleft()
        self.client.report_trained(self.run, steps.rank, steps.first_step, steps.next_step, steps.counts, steps.attempt)

    def _warn_once(self, result: ReportResult) -> None:
        if self._has_warned or not (result.duplicate or result.rejected):
            return
        self._has_warned = True
        _log.warning(
            "reports_without_effect",
            run=self.run,
            num_duplicate=result.duplicate,
            num_rejected=result.rejected,
            hint="the service has losses of these rows, or the rows are not of its current plans; is another execution "
            "using the same run name, or are rows reported twice?",
        )


@dataclass(slots=True)
class TrainedReporter:
    """Tells the service now and then what a rank has trained on, from counts that only grow.

    Args:
        monotonic: a clock, seconds.
    """

    losses: LossReporter
    rank: int
    next_step: int
    """The first step that is not reported yet."""
    counts: TrainedCounts = field(default_factory=TrainedCounts)
    """Of the steps before it."""
    monotonic: Callable[[], float] = time.monotonic
    _sent_at: float = field(default=float("-inf"), init=False, repr=False)

    @property
    def is_due(self) -> bool:
        return self.monotonic() - self._sent_at >= SECONDS_BETWEEN_COUNTS

    def send(self, next_step: int, counts: TrainedCounts, attempt: int = 0) -> None:
        """Report the steps up to before `next_step`, by the counts of all steps so far; raises as `losses` does."""
        if next_step > self.next_step:
            self.losses.send_trained(self.rank, self.next_step, next_step, counts.minus(self.counts), attempt)
            self.next_step, self.counts, self._sent_at = next_step, counts, self.monotonic()


def _joined(rows: list[np.ndarray]) -> np.ndarray:
    """One behind the other, as bytes: numpy copies structures field by field."""
    return np.frombuffer(b"".join(each.astype(LOSS_ROW, copy=False).tobytes() for each in rows), LOSS_ROW)
