"""The losses that go back to the service, in the background."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from replay_service.sampling.events import LOSS_ROW
from trainer.client import ReplayClient

MOST_ROWS_AT_ONCE: Final = 1 << 14
"""Of one request: about half a megabyte."""


@dataclass(slots=True)
class LossReporter:
    """Sends losses in the background, in order; an error comes up at the next `send` or at `flush`.

    What comes while a report is on its way waits, and goes with the next one: a service that takes longer to make a
    report durable than the job takes for a step gets longer reports, not a longer queue of them.
    """

    client: ReplayClient
    run: str
    num_accepted: int = 0
    num_duplicate: int = 0
    num_rejected: int = 0
    num_unmeasured: int = 0
    """Rows sent that could not be measured: the service could not read them, or their loss was not finite."""
    _waiting: deque[np.ndarray] = field(default_factory=deque, init=False, repr=False)
    _sent: deque[Future[None]] = field(default_factory=deque, init=False, repr=False)
    """Each sends all that waits when it runs, so that one that has not begun yet is enough."""
    _executor: ThreadPoolExecutor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="losses")

    def send(self, rows: np.ndarray) -> None:
        """Report losses (LOSS_ROW [n]) without waiting for the answer."""
        while self._sent and self._sent[0].done():
            self._sent.popleft().result()
        self.num_unmeasured += len(rows) - int(np.count_nonzero(rows["num_tokens"]))
        if len(rows):
            self._waiting.append(rows)
            if not self._sent or self._sent[-1].running() or self._sent[-1].done():
                self._send_waiting()

    def flush(self) -> None:
        """Wait until all that was sent is durable."""
        while self._sent:
            self._sent.popleft().result()

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)

    def _send_waiting(self) -> None:
        self._sent.append(self._executor.submit(self._report_waiting))

    def _report_waiting(self) -> None:
        while self._waiting:
            rows: list[np.ndarray] = []
            while self._waiting and sum(map(len, rows)) < MOST_ROWS_AT_ONCE:
                rows.append(self._waiting.popleft())
            try:
                result = self.client.report(self.run, _joined(rows))
            except BaseException:
                if self._waiting:  # what is behind a report that failed goes nevertheless
                    self._send_waiting()
                raise
            self.num_accepted += result.accepted
            self.num_duplicate += result.duplicate
            self.num_rejected += result.rejected


def _joined(rows: list[np.ndarray]) -> np.ndarray:
    """One behind the other, as bytes: numpy copies structures field by field."""
    return np.frombuffer(b"".join(each.astype(LOSS_ROW, copy=False).tobytes() for each in rows), LOSS_ROW)
