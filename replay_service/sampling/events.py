"""The events of a run's journal. Their rows are numpy records, so that writing one down is one copy of bytes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from replay_service.sampling.run_config import RunConfig
from replay_service.sampling.trained import TrainedCounts

PLANNED_ROW = np.dtype([("sample_id", "<i8"), ("stratum", "<i4"), ("times_drawn", "<i4"), ("probability", "<f8")])
"""times_drawn counts this draw too, so 1 means a first visit. probability is that of a single draw to be of this sample
and of this kind: a first visit of it, or a later one. In the first epoch of a stratum all are first visits."""

REPORTED_ROW = np.dtype(
    [
        ("sample_id", "<i8"),
        ("loss_nats", "<f8"),
        ("base_loss_nats", "<f8"),
        ("num_tokens", "<i4"),
        ("num_flips", "<i4"),
        ("num_gains", "<i4"),
    ]
)
"""Losses are means over num_tokens predicted tokens, in nats per token; 0 tokens: the sample could not be measured. A
num_gains of -1: the client does not count them."""


def stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The records of all parts, at least one, of one type, in their order.

    As bytes: numpy would compare the fields of each part first, which takes longer than to copy them.
    """
    if len(parts) == 1:
        return parts[0]
    record = parts[0].dtype
    as_bytes = np.dtype((np.void, record.itemsize))
    return np.concatenate([part.view(as_bytes) for part in parts]).view(record)


@dataclass(frozen=True, slots=True)
class Created:
    """The run begins.

    Attributes:
        config: how it samples.
        generation: the generation of the corpus that it sees.
        num_quantiles: strata of a group.
        sizes: [num_strata], samples of each stratum.
        corpus_fingerprint: tells the corpus from one that has taken its name; None if that was not written down.
        step: -1, before the first.
    """

    config: RunConfig
    generation: int
    num_quantiles: int
    sizes: tuple[int, ...]
    corpus_fingerprint: str | None = None
    step: int = -1


@dataclass(frozen=True, slots=True)
class Adopted:
    """After `step`, the last that had a plan, the run sees a later generation of its corpus.

    Attributes:
        generation: that generation.
        sizes: [num_strata], samples of each stratum: none has fewer than before, and new ones stand at the end.
    """

    step: int
    generation: int
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """The job rehearses these samples in this step, in this order.

    Attributes:
        step: the global training step.
        policy_version: the version of the probabilities that the samples were drawn by.
        rehearsed_before: how many samples all the steps before this one rehearse.
        rows: PLANNED_ROW [num_rehearsed].
    """

    step: int
    policy_version: int
    rehearsed_before: int
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


@dataclass(frozen=True, slots=True)
class Trained:
    """One rank has trained on these counts of rows in the steps from `first_step` to `step`; no plan learns from it."""

    step: int
    rank: int
    first_step: int
    counts: TrainedCounts


@dataclass(frozen=True, slots=True)
class Configured:
    """After `step`, the last that had a plan (-1 if none had), the run samples by `config`."""

    step: int
    config: RunConfig


@dataclass(frozen=True, slots=True)
class Adjusted:
    """After `step`, the last that had a plan, the controller of an `auto` run takes another injection ratio.

    Attributes:
        injection_ratio: a decimal string.
        reason: for people.
    """

    step: int
    injection_ratio: str
    reason: str


@dataclass(frozen=True, slots=True)
class Sealed:
    """The run waits no longer for reports of `step`: in fenced mode, plans go on without them."""

    step: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The job is over: no step after `step`, the last that had a plan, will be planned."""

    step: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The job says that it has ended. A plan of a later step, or a rewind to before it, takes that back.

    Attributes:
        step: the last that had a plan.
        num_steps: how many steps the job has; its last one is `num_steps - 1`.
    """

    step: int
    num_steps: int

    @property
    def end(self) -> int:
        """The first step that is not asked for. Plans may have been made beyond the job's last step (prefetch), or fall
        short of it, where its last steps rehearse nothing."""
        return max(self.num_steps, self.step + 1)


@dataclass(frozen=True, slots=True)
class Rewound:
    """The job goes back to the end of `step`: events of later steps are forgotten. -1 is the beginning."""

    step: int


Event = Planned | Reported | Trained | Configured | Adopted | Adjusted | Sealed | Closed | Finished
"""What is folded into a run's state."""

JournalEvent = Created | Event | Rewound
"""What stands in a journal. The first event makes the state that the others are folded into. A rewind is not folded: it
says which of the events before it still are."""


def surviving(events: Iterable[Event], step: int) -> Iterator[Event]:
    """The events that a rewind to the end of `step` leaves, in their order."""
    return (event for event in events if event.step <= step)
