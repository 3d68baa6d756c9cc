"""Counts of what a job has trained on, as its ranks report them."""

from dataclasses import dataclass, field
from typing import NamedTuple


class TrainedCounts(NamedTuple):
    """Rows and predictions that were trained on, rehearsed ones included."""

    num_rows: int = 0
    num_rehearsed_rows: int = 0
    num_tokens: int = 0
    """Predictions that count in the loss: tokens, or labels of samples to classify."""
    num_rehearsed_tokens: int = 0

    def plus(self, other: "TrainedCounts") -> "TrainedCounts":
        return TrainedCounts(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: "TrainedCounts") -> "TrainedCounts":
        return TrainedCounts(*(a - b for a, b in zip(self, other, strict=True)))


@dataclass(slots=True)
class TrainedTotals:
    """The sum over all ranks, and how far each rank has reported.

    Attributes:
        counts: of all reports.
        next_step: by rank, the first step that it has not reported yet.
    """

    counts: TrainedCounts = field(default_factory=TrainedCounts)
    next_step: dict[int, int] = field(default_factory=dict)

    def has_reported(self, rank: int, first_step: int) -> bool:
        """Whether a report of a rank that begins at `first_step` counts steps that were counted before."""
        return first_step < self.next_step.get(rank, 0)

    def add(self, rank: int, next_step: int, counts: TrainedCounts) -> None:
        """Count what a rank has trained on up to the step before `next_step`."""
        self.counts = self.counts.plus(counts)
        self.next_step[rank] = next_step
