"""The rehearsal stream: this rank's samples, step by step, fetched ahead."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NoReturn

from replay_service.wire.batches import Batch
from replay_trainer.client import ReplayClient
from replay_trainer.errors import InvalidTraining, NotReady, RunGone, ServiceRefused
from replay_trainer.fixed_injection import FixedInjection
from replay_trainer.processes import check_process, not_for_others
from replay_trainer.refusals import ATTEMPT_SUPERSEDED, STEP_OUT_OF_RANGE
from replay_trainer.windows import Auto, WindowRule

STATE_VERSION = 1


@dataclass(slots=True)
class RehearsalStream:
    """Iterates over steps and gives the Batch that `rank` rehearses in each; a batch may be empty.

    It ends after `num_steps` steps, and asks for none beyond: a plan that nobody trains on would await its reports.

    A window of `window_steps` steps is asked for in the background as many steps before it begins, so a plan is made at
    most 2 * window_steps - 1 steps before it is used: a longer window costs fewer requests, a shorter one acts on
    fresher reports. By default the first window is one step, and tells how long the next may be (`WindowRule`).

    Where the run promises that its injection never changes (`injection_fixed`), steps that hold nothing for this rank
    are known (`FixedInjection`) and not asked for: a window begins and ends with a step that holds something, but for
    the first one, and until it comes the batches are made here. So only the next window tells that the run was closed,
    rewound or removed. Else every step is asked for: the injection may be changed up to the moment when a step is
    planned, so nobody but its plan can tell.

    With a `stride` it gives every `stride`-th step, each by a request of its own, for the workers of a DataLoader that
    share the steps of a rank.

    Raises, from `next`:
        RunGone: when the run is closed, unknown, or was rewound since this stream began or was loaded: what it has
            prefetched and reported is not of the plans that are in force.
        ServiceError: as ReplayClient does. A plan that waits for reports is waited for.
        InvalidTraining: in a process that was forked from the stream's own.
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
    stride: int = 1
    _rule: WindowRule | None = field(default=None, init=False, repr=False)
    _fixed: FixedInjection | None = field(default=None, init=False, repr=False)
    _steps_ahead: int = field(default=1, init=False, repr=False)
    _attempt: int | None = field(default=None, init=False, repr=False)
    _asked: deque[tuple[range, Future[Batch]]] = field(default_factory=deque, init=False, repr=False)
    """The windows that have not begun, in order."""
    _latest: tuple[range, Batch] | None = field(default=None, init=False, repr=False)
    """The last window that began; it may have ended."""
    _looked_until: int = field(default=0, init=False, repr=False)
    """The steps from the next one up to here are asked for, or hold nothing."""
    _executor: ThreadPoolExecutor = field(init=False, repr=False)
    _closed: bool = field(default=False, init=False, repr=False)
    _process: int = field(default_factory=os.getpid, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.window_steps != "auto":
            if self.window_steps < 1:
                raise InvalidTraining(f"window_steps must be at least 1, not {self.window_steps}")
            self._steps_ahead = self.window_steps
        if self.stride > 1:
            self.window_steps = self._steps_ahead = 1
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rehearsal")

    @property
    def attempt(self) -> int:
        """That of the batches, which counts the run's rewinds; 0 before the first batch."""
        return self._attempt or 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        check_process(self._process, "a RehearsalStream")
        step = self.next_step
        if self.num_steps is not None and step >= self.num_steps:
            raise StopIteration
        if self._latest is None and not self._asked:
            first = self._steps_from(step)
            self._ask(first)
            self._looked_until = self._after(first)
        if self._asked and self._asked[0][0].start == step:
            self._begin(*self._asked[0])
        self._look_ahead()
        batch = self._of_step(step)
        self.next_step += self.stride
        return batch

    def passed(self, batch: Batch) -> None:
        """Go on behind the step of a batch that another stream of this rank gave.

        Raises:
            RunGone: when it is of another attempt than the batches before.
        """
        self._check_attempt(batch.header.attempt)
        self.next_step = batch.only_step.step + 1

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint; the world size is not in it, since a plan is sliced anew for any."""
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
        self._asked.clear()
        self._latest = self._attempt = None
        self.next_step = state["next_step"]

    def __reduce__(self) -> NoReturn:
        raise not_for_others("RehearsalStream")

    def close(self) -> None:
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _steps_from(self, step: int) -> range:
        """As many steps as a window may have; fewer, or none, where the job ends."""
        end = step + self._steps_ahead
        return range(step, end if self.num_steps is None else min(end, self.num_steps))

    def _ask(self, steps: range) -> None:
        self._asked.append((steps, self._executor.submit(self._window, steps)))

    def _begin(self, steps: range, asked: Future[Batch]) -> None:
        window = asked.result()
        self._check_attempt(window.header.attempt)
        if self.window_steps == "auto":
            assert self._rule is not None
            self._steps_ahead = self._rule.steps_after(window)
        self._latest = steps, window
        self._asked.popleft()

    def _look_ahead(self) -> None:
        """Ask for what begins within the length of a window from the next step."""
        while self._looked_until <= self.next_step + max(self._steps_ahead, self.stride):
            steps = self._steps_from(self._looked_until)
            if not steps:
                return
            wanted = steps if self._fixed is None else self._fixed.window(steps)
            if wanted:
                self._ask(wanted)
                self._looked_until = self._after(steps)
            else:
                self._looked_until += self.stride

    def _after(self, steps: range) -> int:
        """The first step of the window after this one."""
        return steps.stop - 1 + self.stride

    def _of_step(self, step: int) -> Batch:
        assert self._latest is not None
        steps, window = self._latest
        if step in steps:
            return window.of_step(step)
        assert self._fixed is not None
        return self._fixed.empty(step, window)

    def _check_attempt(self, attempt: int) -> None:
        if self._attempt is None:
            self._attempt = attempt
        elif attempt != self._attempt:
            raise RunGone(
                ATTEMPT_SUPERSEDED,
                f"run {self.run!r} was rewound while this job went on: it began with attempt {self._attempt}, and the "
                f"service serves attempt {attempt}; go on from a checkpoint",
                HTTPStatus.OK,
            )

    def _window(self, steps: range) -> Batch:
        """The batch of these steps, from the service."""
        if self._rule is None:
            run = self.client.run(self.run)
            self._fixed = FixedInjection.of_run(run, self.rank, self.world_size)
            self._rule = WindowRule.of_run(run, self.world_size, self.num_steps)
        try:
            return self._patiently(steps)
        except ServiceRefused as error:
            may_be_behind = self._fixed is not None or self.stride > 1
            if not may_be_behind or error.slug != STEP_OUT_OF_RANGE:
                raise
        self._catch_up(steps.start)
        return self._patiently(steps)

    def _catch_up(self, step: int) -> None:
        """Have the steps before this one planned bit by bit, where nobody asked for more than is planned at once."""
        while (run := self.client.run(self.run))["next_step"] < step:
            if self._attempt is not None:
                self._check_attempt(run["attempt"])
            last = min(run["next_step"] + run["max_window_steps"], step) - 1
            self._patiently(range(last, last + 1))

    def _patiently(self, steps: range) -> Batch:
        while True:
            try:
                return self.client.batch(
                    self.run,
                    steps.start,
                    num_steps=len(steps),
                    rank=self.rank,
                    world_size=self.world_size,
                    topk=self.topk,
                )
            except NotReady:
                # The job is slower than the client is patient; the service seals what it has waited for too long.
                if self._closed:
                    raise
