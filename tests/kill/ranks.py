"""The ranks of a job that uses the service: they pull windows of steps, report losses in disorder, and remember."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from replay_service.wire.batches import Batch
from replay_service.wire.losses import LOSS_ROW
from replay_trainer.client import ReplayClient

MOST_STEPS_A_WINDOW: Final = 8
NUM_TOKENS: Final = 11

_MOST_LATE: Final = 40
_SHARE_SENT_TWICE: Final = 0.1
_SHARE_LATE: Final = 0.1
_SHARE_ASKED_AGAIN: Final = 0.1


def losses_of(seed: int, step: int, rank: int, sample_ids: Sequence[int]) -> np.ndarray:
    """What a rank measures, LOSS_ROW [n]: a function of the seed, the step and the sample alone.

    What lies in the first segments is forgotten most, so that the policy has something to prefer.
    """
    rows = np.zeros(len(sample_ids), dtype=LOSS_ROW)
    rows["step"], rows["rank"], rows["sample_id"], rows["num_tokens"] = step, rank, sample_ids, NUM_TOKENS
    for row in rows:
        rng = np.random.default_rng([seed, step, int(row["sample_id"])])
        row["loss_nats"] = rng.gamma(4.0, 1.0)
        row["num_flips"] = rng.binomial(NUM_TOKENS, 0.7 if row["sample_id"] >> 32 < 4 else 0.1)
    return rows


@dataclass(frozen=True, slots=True)
class Given:
    """What one rank was given for one step."""

    step: int
    sample_ids: tuple[int, ...]
    num_rehearsed: int
    rehearsed_before: int


def steps_of(batch: Batch) -> Iterator[Given]:
    for header in batch.header.steps:
        ids = tuple(batch.of_step(header.step).sample_id.tolist())
        yield Given(header.step, ids, header.num_rehearsed, header.rehearsed_before)


@dataclass(slots=True)
class Job:
    """How far the ranks train: on and on, and once stopped, to the last step that any of them has asked for.

    A rank that waits for the others' reports must not be left behind by them.
    """

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _end: int = 0
    _stopped: bool = False

    def stop(self) -> None:
        with self._lock:
            self._stopped = True

    def is_over(self, next_step: int) -> bool:
        with self._lock:
            return self._stopped and next_step >= self._end

    def end_of(self, wanted_end: int) -> int:
        """Where a window may end that would end before step `wanted_end`."""
        with self._lock:
            if not self._stopped:
                self._end = max(self._end, wanted_end)
            return min(wanted_end, self._end)


@dataclass(slots=True)
class Rank:
    """One rank of the job that uses `run`; `lag` is that of fenced feedback, or None.

    Of several services on one journal it asks now this one and now that one.

    Before a fenced rank asks for plans, it reports what they wait for. Then ranks never wait for each other: of those
    that wait, the one whose window ends first waits for nobody, since no window is longer than the lag.
    """

    run: str
    rank: int
    world_size: int
    clients: Sequence[ReplayClient]
    rng: np.random.Generator
    seed: int
    lag: int | None = None
    given: list[Given] = field(default_factory=list)
    acknowledged: set[tuple[int, int]] = field(default_factory=set)
    num_batches: int = 0
    num_reports: int = 0
    num_rejected: int = 0
    next_step: int = 0
    _to_report: list[Given] = field(default_factory=list)
    _late: list[Given] = field(default_factory=list)

    def play(self, job: Job) -> None:
        """Train until the job is over, then report what is left."""
        while not job.is_over(self.next_step):
            first, wanted_end = self._choose_window()
            end = job.end_of(wanted_end)
            if first < end:
                self._report_due(end - 1)
                self._pull(first, end - first)
                self._report_some()
        for each in [*self._to_report, *self._late]:
            self._report(each)

    def _client(self) -> ReplayClient:
        return self.clients[int(self.rng.integers(len(self.clients)))]

    def _choose_window(self) -> tuple[int, int]:
        first, num_steps = self.next_step, int(self.rng.integers(1, MOST_STEPS_A_WINDOW + 1))
        if self.rng.random() < _SHARE_ASKED_AGAIN:
            first = int(self.rng.integers(0, self.next_step + 1))
        return first, first + num_steps

    def _report_due(self, last_step: int) -> None:
        """In fenced mode, report what the plan of `last_step` waits for."""
        if self.lag is None:
            return
        for waiting in (self._to_report, self._late):
            due = [each for each in waiting if each.step <= last_step - self.lag]
            waiting[:] = [each for each in waiting if each.step > last_step - self.lag]
            for each in due:
                self._report(each)

    def _pull(self, first: int, num_steps: int) -> None:
        batch = self._client().batch(self.run, first, num_steps=num_steps, rank=self.rank, world_size=self.world_size)
        self.num_batches += 1
        given = list(steps_of(batch))
        assert [each.step for each in given] == list(range(first, first + num_steps))
        self.given += given
        self._to_report += [each for each in given if each.step >= self.next_step]
        self.next_step = max(self.next_step, first + num_steps)

    def _report_some(self) -> None:
        self.rng.shuffle(self._to_report)
        for _ in range(int(self.rng.integers(0, len(self._to_report) + 1))):
            given = self._to_report.pop()
            if self.rng.random() < _SHARE_LATE:
                self._late.append(given)
                continue
            self._report(given)
            if self.rng.random() < _SHARE_SENT_TWICE:
                self._late.append(given)
        if len(self._late) > _MOST_LATE:
            self._report(self._late.pop(int(self.rng.integers(len(self._late)))))

    def _report(self, given: Given) -> None:
        rows = losses_of(self.seed, given.step, self.rank, given.sample_ids)
        result = self._client().report(self.run, rows)
        self.num_reports += 1
        self.num_rejected += result.rejected
        assert result.accepted + result.duplicate + result.rejected == len(rows)
        if not result.rejected:
            self.acknowledged.update((given.step, sample_id) for sample_id in given.sample_ids)
