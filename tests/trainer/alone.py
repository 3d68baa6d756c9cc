"""The reference for the losses of every training loop: each sample alone through the model, its cross-entropy summed.

It shares nothing with the loops: neither padding, nor forward passes of several rows, nor means.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from replay_service.wire.batches import Batch
from replay_trainer.batches.added import Added

Sample = tuple[Tensor, Tensor]
"""Token ids and labels, int64 [tokens] each."""


@dataclass(frozen=True, slots=True)
class Part:
    """The samples of a micro-batch: those of the loader, and those that the service gave."""

    step: int
    target: list[Sample]
    rehearsed: list[Sample]

    @classmethod
    def of(cls, batch: Added, step: int | None = None) -> "Part":
        """Of a micro-batch whose fine-tuning rows are padded."""
        target = list(samples_of(batch.inputs))[: batch.num_target_rows]
        return cls(batch.rehearsed.only_step.step if step is None else step, target, rehearsed_of(batch.rehearsed))

    @property
    def samples(self) -> list[Sample]:
        return self.target + self.rehearsed


def samples_of(inputs: Mapping[str, Any]) -> Iterator[Sample]:
    """The samples of a batch, padded or flat, without padding."""
    for row, (ids, labels) in enumerate(zip(inputs["input_ids"], inputs["labels"], strict=True)):
        if "position_ids" in inputs:
            first = [*(inputs["position_ids"][row] == 0).nonzero().flatten().tolist(), len(ids)]
            yield from ((ids[a:b], labels[a:b]) for a, b in pairwise(first))
        else:
            length = int(inputs["attention_mask"][row].sum()) if "attention_mask" in inputs else len(ids)
            yield ids[:length], labels[:length]


def rehearsed_of(rehearsed: Batch) -> list[Sample]:
    rows = zip(rehearsed.input_ids, rehearsed.length, strict=True)
    tokens = [torch.from_numpy(ids[:length].astype("int64")) for ids, length in rows]
    return [(each, each) for each in tokens]


def num_predictions(samples: Sequence[Sample]) -> int:
    """How many labels count."""
    return sum(int((labels[1:] != -100).sum()) for _, labels in samples)


def nats(model: nn.Module, samples: Sequence[Sample]) -> Tensor:
    """The sum over all predictions that count; differentiable."""
    total = next(model.parameters()).new_zeros(())
    for ids, labels in samples:
        if num_predictions([(ids, labels)]):
            logits = model(input_ids=ids[None]).logits[0, :-1]
            total = total + nn.functional.cross_entropy(logits, labels[1:], reduction="sum")
    return total


def precise(model: nn.Module) -> nn.Module:
    """A copy of a model that computes in float64, without dropout."""
    return copy.deepcopy(model).double().eval()


def mean_loss(model: nn.Module, samples: Sequence[Sample]) -> float:
    """The mean over all predictions that count, in float64."""
    with torch.no_grad():
        return float(nats(precise(model), samples)) / num_predictions(samples)


def mean_losses(model: nn.Module, parts: Sequence[Part]) -> dict[str, float]:
    """Those of the fine-tuning and of the rehearsed samples, by the names that loops log them under."""
    kinds = {
        "target_loss": [each for part in parts for each in part.target],
        "rehearsed_loss": [each for part in parts for each in part.rehearsed],
    }
    return {name: mean_loss(model, samples) for name, samples in kinds.items() if samples}


def learn(
    model: nn.Module, ranks: Sequence[Sequence[Part]], optimizer: torch.optim.Optimizer, num_parts: int
) -> list[dict[str, float]]:
    """Train a model on what the processes of a loop were given, with the mean of their gradients.

    Args:
        model: as it is before the first step.
        ranks: the micro-batches of each process, in order.
        optimizer: of the model.
        num_parts: by how many micro-batches the loop divides the loss of each.

    Returns:
        The mean losses of each step, before it is taken.
    """
    found = []
    for step in sorted({part.step for part in ranks[0]}):
        parts = [part for rank in ranks for part in rank if part.step == step]
        found.append(mean_losses(model, parts))
        for part in parts:
            mean = nats(model, part.samples) / num_predictions(part.samples)
            (mean / num_parts / len(ranks)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return found
