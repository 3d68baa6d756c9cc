"""Counts of what a training loop has trained on, and the check that its batches are as large as its run expects.

The service plans how many rows a step rehearses from the run's `global_batch_size`. Batches of another size would be
rehearsed at another ratio than the service states, so the rows of each step are counted here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog
from torch import Tensor

from replay_service.sampling.trained import TrainedCounts
from replay_trainer.batches.added import IGNORED, Added
from replay_trainer.errors import InvalidTraining

_NAMES: Final = ("num_target_rows", "num_rehearsed_rows", "num_target_tokens", "num_rehearsed_tokens")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Trained:
    """What one rank has trained on; a row that a retry trained on again counts once.

    Attributes:
        num_target_rows: fine-tuning rows; of a flat batch, its samples.
        num_rehearsed_rows: rehearsed rows.
        num_target_tokens: predictions of fine-tuning rows that count: tokens, or labels of samples to classify.
        num_rehearsed_tokens: predictions of rehearsed rows.
    """

    num_target_rows: int = 0
    num_rehearsed_rows: int = 0
    num_target_tokens: int = 0
    num_rehearsed_tokens: int = 0

    @property
    def rehearsed_share(self) -> float:
        """The share of the rows that was rehearsed: the injection ratio as it was trained; 0 before any row."""
        return self.num_rehearsed_rows / max(1, self.num_target_rows + self.num_rehearsed_rows)

    @property
    def counts(self) -> TrainedCounts:
        """As the service counts them: rehearsed ones among all."""
        num_rows = self.num_target_rows + self.num_rehearsed_rows
        num_tokens = self.num_target_tokens + self.num_rehearsed_tokens
        return TrainedCounts(num_rows, self.num_rehearsed_rows, num_tokens, self.num_rehearsed_tokens)

    def metrics(self) -> dict[str, float]:
        """The counts and the share, by name."""
        return {**{name: getattr(self, name) for name in _NAMES}, "rehearsed_share": self.rehearsed_share}


@dataclass(frozen=True, slots=True)
class StepSize:
    """How many fine-tuning rows one rank takes in an optimizer step.

    Attributes:
        run: its name.
        global_batch_size: of the run.
        world_size: ranks that share the rows.
        may_be_short: whether any step may have fewer rows, since the loop has told its batch size and it is the run's.
        replaces: whether rehearsed rows take the place of fine-tuning rows, so that both count.
    """

    run: str
    global_batch_size: int
    world_size: int
    may_be_short: bool = False
    replaces: bool = False

    @property
    def least(self) -> int:
        return self.global_batch_size // self.world_size

    @property
    def most(self) -> int:
        return -(-self.global_batch_size // self.world_size)

    @property
    def depends_on_ranks(self) -> bool:
        """Whether the rows of one rank do not tell if those of all ranks are as many as the run expects."""
        return self.least != self.most and not self.may_be_short

    def refusal_of_ranks(self, step: int, num_rows: int, total: int) -> InvalidTraining:
        """The error that says that all ranks together have another number of rows in a step."""
        return InvalidTraining(
            f"step {step} has {total} fine-tuning rows over {self.world_size} ranks, {num_rows} of them on this one, "
            f"but run {self.run!r} was created with global_batch_size {self.global_batch_size}, so it would rehearse "
            f"another share of the rows than its injection_ratio; create a run of another name with global_batch_size "
            f"{total}"
        )

    def refusal(self, step: int, num_rows: int, num_parts: int) -> InvalidTraining:
        """The error that says that a step has another number of rows."""
        if self.replaces:
            return self._refusal_of_room(step, num_rows)
        share = f"{self.least} rows" if self.least == self.most else f"{self.least} or {self.most} rows"
        parts = f" in {num_parts} parts" if num_parts > 1 else ""
        return InvalidTraining(
            f"step {step} has {num_rows} fine-tuning rows on this rank{parts}, but run {self.run!r} was created with "
            f"global_batch_size {self.global_batch_size}, which is {share} on each of {self.world_size} ranks, so it "
            "would rehearse another share of the rows than its injection_ratio; create a run of another name whose "
            "global_batch_size is the rows of one optimizer step over all ranks, or, where the gradient is "
            "accumulated, pass part= and num_parts= to mix"
        )

    def _refusal_of_room(self, step: int, num_rows: int) -> InvalidTraining:
        return InvalidTraining(
            f"step {step} has {num_rows} rows on this rank, rehearsed ones included, but run {self.run!r} has "
            f"injection_mode replace and global_batch_size {self.global_batch_size}, which is {self.least} "
            f"to {self.most} rows on each of {self.world_size} ranks; leave out as many fine-tuning rows as are "
            "rehearsed, as ReplaceSampler and RehearsalDataset do"
        )


@dataclass(frozen=True, slots=True)
class _Counts:
    """As Trained; `target_tokens` may stay on its device, so that counting does not wait for it."""

    target_rows: int
    rehearsed_rows: int
    target_tokens: Tensor | int
    rehearsed_tokens: int

    def __add__(self, other: "_Counts") -> "_Counts":
        return _Counts(
            self.target_rows + other.target_rows,
            self.rehearsed_rows + other.rehearsed_rows,
            self.target_tokens + other.target_tokens,
            self.rehearsed_tokens + other.rehearsed_tokens,
        )


@dataclass(slots=True)
class _Part:
    """A micro-batch of the current step."""

    counts: _Counts
    is_flat: bool
    is_reported: bool = False


@dataclass(slots=True)
class Tally:
    """Counts the parts of the steps of one rank, and refuses steps whose rows do not fit the run.

    A step with fewer rows is taken for the last one of an epoch, unless it is the first or follows another such step.
    Samples of a flat batch may be more than its rows were, so only too few of them are refused.

    Attributes:
        size: how many rows a step should have; None if nobody knows.
        has_full_step: whether a step before had them.
        sum_over_ranks: the sum of a number of each rank, or None where the ranks do not know each other. It is asked
            for once by every rank, in its first step, and only where the ranks do not divide the batch.
    """

    size: StepSize | None = None
    has_full_step: bool = False
    sum_over_ranks: Callable[[int], int | None] = lambda _: None
    _before: _Counts = field(default_factory=lambda: _Counts(0, 0, 0, 0))
    """Of the steps that are over."""
    _step: int = -1
    _num_parts: int = 1
    _parts: dict[int, _Part] = field(default_factory=dict)
    _was_short: bool = False
    _has_warned: bool = False
    _has_summed: bool = False

    @property
    def trained(self) -> Trained:
        """All so far, the parts of the current step included; waits for the device."""
        return _trained(self._counts())

    def finished(self) -> tuple[int, Trained]:
        """The step after the last one of which all parts were mixed, and what was trained on until then.

        It waits for the device. The step is 0 where nothing was mixed yet.
        """
        is_whole = len(self._parts) == self._num_parts
        return max(self._step, 0) + (1 if is_whole else 0), _trained(self._counts() if is_whole else self._before)

    def begin(self, step: int, part: int, num_parts: int) -> None:
        """Check that a part of a step may be mixed now, before anything is asked for.

        Raises:
            InvalidTraining: when the part does not exist, was reported, or the step before had too few rows.
        """
        if not 0 <= part < num_parts:
            raise InvalidTraining(f"part {part} of {num_parts} was asked for; parts are counted from 0")
        if step != self._step:
            self._end_step()
            self._step, self._num_parts, self._parts = step, num_parts, {}
            return
        is_reported = any(each.is_reported for each in self._parts.values())
        if num_parts != self._num_parts and is_reported:
            raise InvalidTraining(
                f"step {step} was mixed and reported in {self._num_parts} parts, not in {num_parts}; num_parts is how "
                "many micro-batches the optimizer step takes"
            )
        if num_parts != self._num_parts:
            self._num_parts, self._parts = num_parts, {}
        self._check_not_reported(step, part)

    def end_after(self, part: int) -> None:
        """Note that the step has no part after this one."""
        self._num_parts = part + 1

    def add(self, added: Added) -> None:
        """Count a part that was mixed.

        Raises:
            InvalidTraining: when the rows of the step do not fit the run.
        """
        parts = {**self._parts, added.part: _part_of(added)}
        num_rows = self._num_rows(parts)
        if self.size is not None:
            if num_rows > self.size.most and not any(each.is_flat for each in parts.values()):
                raise self.size.refusal(self._step, num_rows, self._num_parts)
            if len(parts) == self._num_parts and self._is_too_short(num_rows):
                raise self.size.refusal(self._step, num_rows, self._num_parts)
            if len(parts) == self._num_parts and not any(each.is_flat for each in parts.values()):
                self._check_ranks(self.size, num_rows)
        self._parts = parts

    def report(self, added: Added) -> None:
        """Note that a part was reported.

        Raises:
            InvalidTraining: when it was before.
        """
        step = added.rehearsed.only_step.step
        if step == self._step and added.part in self._parts:
            self._check_not_reported(step, added.part)
            self._parts[added.part].is_reported = True

    def go_on_from(self, trained: Trained, step: int) -> None:
        """Begin anew at a later step, with the counts of a checkpoint."""
        self._before, self.has_full_step = _Counts(*(getattr(trained, name) for name in _NAMES)), step > 0
        self._step, self._parts, self._was_short = -1, {}, False

    def _check_not_reported(self, step: int, part: int) -> None:
        if part in self._parts and self._parts[part].is_reported:
            raise InvalidTraining(
                f"the rehearsed rows of step {step} were mixed and reported already"
                + (f" for part {part}" if self._num_parts > 1 else "")
                + "; a step is one optimizer step: where the gradient is accumulated, call mix(step, inputs, part=i, "
                "num_parts=n) for micro-batch i of n, or spread(step, micro_batches)"
            )

    def _counts(self) -> _Counts:
        return sum((each.counts for each in self._parts.values()), self._before)

    def _end_step(self) -> None:
        if self._parts and self.size is not None:
            self._check_whole(self.size, self._num_rows(self._parts))
        self._before = self._counts()

    def _check_whole(self, size: StepSize, num_rows: int) -> None:
        if self._is_too_short(num_rows):
            raise size.refusal(self._step, num_rows, self._num_parts)
        if len(self._parts) < self._num_parts:
            self._warn_of_missing_parts()
        self._was_short = num_rows < size.least
        self.has_full_step = self.has_full_step or not self._was_short

    def _check_ranks(self, size: StepSize, num_rows: int) -> None:
        if self._has_summed or self.has_full_step or not size.depends_on_ranks:
            return
        self._has_summed = True
        total = self.sum_over_ranks(num_rows)
        if total is None:
            _log.warning(
                "rows_of_ranks_unchecked",
                run=size.run,
                hint=f"{size.world_size} ranks do not divide global_batch_size {size.global_batch_size}; make sure "
                f"that their rows of a step are {size.global_batch_size} together",
            )
        elif total != size.global_batch_size:
            raise size.refusal_of_ranks(self._step, num_rows, total)

    def _num_rows(self, parts: Mapping[int, _Part]) -> int:
        """The rows of some parts that the batch size of the run counts."""
        replaces = self.size is not None and self.size.replaces
        counts = [each.counts for each in parts.values()]
        return sum(each.target_rows + (each.rehearsed_rows if replaces else 0) for each in counts)

    def _is_too_short(self, num_rows: int) -> bool:
        assert self.size is not None
        is_last_of_epoch = self.has_full_step and not self._was_short and not self.size.replaces
        return num_rows < self.size.least and not self.size.may_be_short and not is_last_of_epoch

    def _warn_of_missing_parts(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "rehearsed_rows_left_out",
                step=self._step,
                num_parts=self._num_parts,
                num_mixed=len(self._parts),
                hint="pass as num_parts how many micro-batches this optimizer step has",
            )


def _trained(counts: _Counts) -> Trained:
    return Trained(counts.target_rows, counts.rehearsed_rows, int(counts.target_tokens), counts.rehearsed_tokens)


def _part_of(added: Added) -> _Part:
    rehearsed, labels = added.rehearsed, added.target_labels
    counted = labels if labels.ndim == 1 else labels[:, 1:]
    length = rehearsed.length.astype("int64")
    is_language = rehearsed.header.kind == "language"
    num_predictions = (length - 1).clip(min=0).sum() if is_language else (length > 0).sum()
    num_target_tokens = (counted != IGNORED).sum()
    counts = _Counts(added.num_target_rows, added.num_rehearsed, num_target_tokens, int(num_predictions))
    return _Part(counts, added.is_flat)
