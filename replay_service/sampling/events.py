"""The events of a run's journal. Their rows are numpy records, so that writing one down is one copy of bytes."""

from dataclasses import dataclass

import numpy as np

PLANNED_ROW = np.dtype([("sample_id", "<i8"), ("stratum", "<i4"), ("times_drawn", "<i4"), ("probability", "<f8")])
"""times_drawn counts this draw too, so 1 means a first visit; probability is that of a single draw."""

LOSS_ROW = np.dtype(
    [
        ("step", "<i8"),
        ("rank", "<i4"),
        ("sample_id", "<i8"),
        ("loss_nats", "<f8"),
        ("num_tokens", "<i4"),
        ("num_flips", "<i4"),
    ]
)
"""What a trainer says of one rehearsed sample, before it becomes an event."""

REPORTED_ROW = np.dtype(
    [
        ("sample_id", "<i8"),
        ("loss_nats", "<f8"),
        ("base_loss_nats", "<f8"),
        ("num_tokens", "<i4"),
        ("num_flips", "<i4"),
    ]
)
"""Losses are means over num_tokens predicted tokens, in nats per token."""


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """The job rehearses these samples in this step, in this order.

    Attributes:
        step: the global training step.
        policy_version: the version of the probabilities that the samples were drawn by.
        rows: PLANNED_ROW [num_rehearsed].
    """

    step: int
    policy_version: int
    rows: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Reported:
    """One rank measured these losses of samples that were planned for this step.

    Attributes:
        step: the global training step of the plan.
        rank: the rank that reports.
        rows: REPORTED_ROW [num_samples], each sample planned for the step and not reported before.
    """

    step: int
    rank: int
    rows: np.ndarray


Event = Planned | Reported
