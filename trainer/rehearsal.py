"""The rehearsal stream: this rank's samples, step by step, fetched ahead; and the losses that go back."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import numpy as np

from replay_service.gateway.wire.arrow import Batch
from trainer.client import ReplayClient
from trainer.errors import InvalidTraining, NotReady, RunGone
from trainer.refusals import ATTEMPT_SUPERSEDED
from trainer.windows import Auto, WindowRule

STATE_VERSION = 1


@dataclass(slots=True)
class RehearsalStream:
    """Iterates over steps and gives the Batch that `rank` rehearses in each; a batch may be empty.

    It ends after `num_steps` steps, and asks for none beyond: a plan that nobody trains on would await its reports.

    One window of `window_steps` steps is fetched in the background while the one before is trained on, so a plan is
    made at most 2 * window_steps - 1 steps before it is used: a longer window costs fewer requests, a shorter one acts
    on fresher reports. By default the first window is one step, and tells how long the next may be (`WindowRule`).

    Every step is asked for, also one that holds nothing for this rank: the injection ratio may be changed up to the
    moment when a step is planned, so nobody but its plan can tell.

    Raises, from `next`:
        RunGone: when the run is closed, unknown, or was rewound since this stream began or was loaded: what it has
            prefetched and reported is not of the plans that are in force.
        ServiceError: as ReplayClient does. A plan that waits for reports is waited for.
    """

    client: ReplayClient
    run: str
    rank: int
    world_size: int
    num_steps: int | None = None
    window_steps: int | Auto = "auto"
    topk: bool = False
    """Whether batches bring the base model's likeliest tokens, which distilled rehearsal learns from."""
    next_step: int = 0
    _rule: WindowRule | None = field(default=None, init=False, repr=False)
    _steps_ahead: int = field(default=1, init=False, repr=False)
    _attempt: int | None = field(default=None, init=False, repr=False)
    _windows: deque[Future[Batch]] = field(default_factory=deque, init=False, repr=False)
    _executor: ThreadPoolExecutor = field(init=False, repr=False)
    _closed: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.window_steps != "auto":
            if self.window_steps < 1:
                raise InvalidTraining(f"window_steps must be at least 1, not {self.window_steps}")
            self._steps_ahead = self.window_steps
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rehearsal")

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._windows and not self._fetch(self.next_step):
            raise StopIteration
        window = self._windows[0].result()
        first, last = window.header.steps[0].step, window.header.steps[-1].step
        if first == self.next_step:
            self._check_attempt(window)
        if len(self._windows) == 1:
            if self._rule is not None:
                self._steps_ahead = self._rule.steps_after(window)
            self._fetch(last + 1)
        assert first <= self.next_step <= last
        batch = window.of_step(self.next_step)
        if self.next_step == last:
            self._windows.popleft()
        self.next_step += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold; the world size is not in it, since a plan is sliced anew for any."""
        return {"version": STATE_VERSION, "run": self.run, "next_step": self.next_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; the same samples come as came then.

        Raises:
            InvalidTraining: when the state is of another version or of another run.
        """
        if state.get("version") != STATE_VERSION:
            raise InvalidTraining(
                f"the rehearsal state is of version {state.get('version')}; this release reads {STATE_VERSION}"
            )
        if state["run"] != self.run:
            raise InvalidTraining(f"the rehearsal state is of run {state['run']!r}, not of {self.run!r}")
        self._windows.clear()
        self._attempt = None
        self.next_step = state["next_step"]

    def close(self) -> None:
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, step: int) -> bool:
        """Ask for the window that begins at `step`; False if the job ends before it."""
        end = step + self._steps_ahead if self.num_steps is None else min(step + self._steps_ahead, self.num_steps)
        if step >= end:
            return False
        self._windows.append(self._executor.submit(self._ask, step, end - step))
        return True

    def _check_attempt(self, window: Batch) -> None:
        attempt = window.header.attempt
        if self._attempt is None:
            self._attempt = attempt
        elif attempt != self._attempt:
            raise RunGone(
                ATTEMPT_SUPERSEDED,
                f"run {self.run!r} was rewound while this job went on: it began with attempt {self._attempt}, and the "
                f"service serves attempt {attempt}; go on from a checkpoint",
                HTTPStatus.OK,
            )

    def _ask(self, step: int, num_steps: int) -> Batch:
        if self.window_steps == "auto" and self._rule is None:
            self._rule = WindowRule.of_run(self.client.run(self.run), self.world_size, self.num_steps)
        while True:
            try:
                return self.client.batch(
                    self.run,
                    step,
                    num_steps=num_steps,
                    rank=self.rank,
                    world_size=self.world_size,
                    topk=self.topk,
                )
            except NotReady:
                # The job is slower than the client is patient; the service seals what it has waited for too long.
                if self._closed:
                    raise


@dataclass(slots=True)
class LossReporter:
    """Sends losses in the background, in order; an error comes up at the next `send` or at `flush`."""

    client: ReplayClient
    run: str
    num_accepted: int = 0
    num_duplicate: int = 0
    num_rejected: int = 0
    num_unmeasured: int = 0
    """Rows sent that could not be measured: the service could not read them, or their loss was not finite."""
    _sent: deque[Future[None]] = field(default_factory=deque, init=False, repr=False)
    _executor: ThreadPoolExecutor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="losses")

    def send(self, rows: np.ndarray) -> None:
        """Report losses (LOSS_ROW [n]) without waiting for the answer."""
        while self._sent and self._sent[0].done():
            self._sent.popleft().result()
        self.num_unmeasured += int((rows["num_tokens"] == 0).sum())
        if len(rows):
            self._sent.append(self._executor.submit(self._report, rows))

    def flush(self) -> None:
        """Wait until all that was sent is durable."""
        while self._sent:
            self._sent.popleft().result()

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)

    def _report(self, rows: np.ndarray) -> None:
        result = self.client.report(self.run, rows)
        self.num_accepted += result.accepted
        self.num_duplicate += result.duplicate
        self.num_rejected += result.rejected
