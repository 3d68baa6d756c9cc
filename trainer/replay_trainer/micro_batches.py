"""Rehearsal in a loop that brings one micro-batch at a time and knows which one is a step's last: those of accelerate
and Lightning."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from replay_trainer.batches.added import Added
from replay_trainer.errors import InvalidTraining
from replay_trainer.loss_sums import LossSums
from replay_trainer.rehearsal_loop import RehearsalLoop


@dataclass(slots=True)
class MicroBatches:
    """Counts the micro-batches of each optimizer step, so that a loop need not say which one it brings.

    Attributes:
        loop: the rehearsal of this rank.
        num_parts: micro-batches of a step, as the library is set.
        is_last: whether the optimizer steps after the present one, which may come early at the end of an epoch. All
            rehearsed rows that are left of the step join that one.
        total: the sum of a tensor over all ranks.
    """

    loop: RehearsalLoop
    num_parts: Callable[[], int]
    is_last: Callable[[], bool]
    total: Callable[[Tensor], Tensor]
    _step: int = field(default=-1, init=False, repr=False)
    _next_part: int = field(default=0, init=False, repr=False)
    _num_parts: int = field(default=1, init=False, repr=False)
    _sums: LossSums = field(default_factory=LossSums, init=False, repr=False)

    def mix(self, inputs: Mapping[str, Any]) -> Added:
        """The next micro-batch with what this rank rehearses in it, as `RehearsalLoop.mix` gives it.

        Raises:
            InvalidTraining: as RehearsalLoop.mix does.
        """
        part, is_last = self._next_part, self.is_last()
        if part == 0:
            self._step, self._num_parts = self.loop.stream.next_step, max(1, self.num_parts())
        mixed = self.loop.mix(self._step, inputs, part=part, num_parts=self._num_parts, is_last=is_last)
        self._next_part = 0 if is_last else part + 1
        return mixed

    def loss(self, batch: Added, loss: Tensor, logits: Tensor) -> Tensor:
        """The loss to learn by, after the rehearsed rows of a micro-batch were measured and reported.

        Args:
            batch: as `mix` gave it.
            loss: the model's, the mean over all predictions of the batch.
            logits: of the batch.
        """
        losses = batch.losses(logits)
        self.loop.report(batch, losses)
        rehearsed_nats, num_rehearsed = losses.total()
        num_predictions = batch.num_predictions.to(loss.device)
        self._sums.add_rehearsed(rehearsed_nats, num_rehearsed)
        self._sums.add_target(
            loss.detach() * num_predictions - rehearsed_nats.detach(), num_predictions - num_rehearsed
        )
        return batch.weigh(loss, losses)

    def figures(self, device: torch.device) -> dict[str, float]:
        """Figures to log after a step; all ranks call this.

        `RehearsalLoop.metrics`; `target_loss` and `rehearsed_loss`, nats per prediction of all ranks since the last
        call; and on rank 0 now and then `RehearsalLoop.estimates`.
        """
        means = self._sums.take(self.total, device)
        return {**self.loop.metrics(), **means, **self.loop.estimates(self._step)}

    def check_between_steps(self) -> None:
        """Raises InvalidTraining within a step: a checkpoint would hold neither its rest nor its gradients."""
        if self._next_part:
            raise InvalidTraining(
                f"a checkpoint is to be written after micro-batch {self._next_part} of {self._num_parts} of step "
                f"{self._step}, from which nothing can go on: it holds no gradients; write it after an optimizer step: "
                "where accelerator.sync_gradients is true, or in Lightning every_n_train_steps or every_n_epochs"
            )

    def begin_anew(self) -> None:
        """Go on at the loop's next step, after a state was loaded."""
        self._next_part, self._sums = 0, LossSums()
