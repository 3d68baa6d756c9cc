"""Rehearsal in a loop that brings one micro-batch at a time and knows which one is a step's last: those of accelerate
and Lightning."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from replay_trainer.batches.added import Added, Losses
from replay_trainer.batches.apart import ApartInputs
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

    def mix(self, inputs: Mapping[str, Any], *, apart: bool = False) -> Added:
        """The next micro-batch with what this rank rehearses in it, as `RehearsalLoop.mix` gives it.

        Args:
            inputs: the loader's batch.
            apart: whether rehearsed rows of tokens take a forward pass of their own. Where any rank rehearses in the
                step, all ranks make it.

        Raises:
            InvalidTraining: as RehearsalLoop.mix does.
        """
        part, is_last = self._next_part, self.is_last()
        if part == 0:
            self._step, self._num_parts = self.loop.stream.next_step, max(1, self.num_parts())
        mixed = self.loop.mix(self._step, inputs, part=part, num_parts=self._num_parts, is_last=is_last, apart=apart)
        self._next_part = 0 if is_last else part + 1
        return mixed

    def loss(self, batch: Added, loss: Tensor, logits: Tensor, rehearsed_logits: Tensor | None = None) -> Tensor:
        """The loss to learn by, after the rehearsed rows of a micro-batch were measured and reported.

        Args:
            batch: as `mix` gave it.
            loss: the model's, the mean over all predictions of the batch.
            logits: of the batch.
            rehearsed_logits: those of `batch.rehearsed_inputs`, where rehearsed rows take a forward pass of their own.

        Raises:
            InvalidTraining: when that pass is missing.
        """
        if isinstance(batch, ApartInputs):
            return self._loss_of_two_passes(batch, loss, rehearsed_logits)
        losses = batch.losses(logits)
        num_predictions = batch.num_predictions.to(loss.device)
        rehearsed_nats, num_rehearsed = self._report(batch, losses)
        self._sums.add_target(
            loss.detach() * num_predictions - rehearsed_nats.detach(), num_predictions - num_rehearsed
        )
        return batch.weigh(loss, losses)

    def _loss_of_two_passes(self, batch: ApartInputs, loss: Tensor, rehearsed_logits: Tensor | None) -> Tensor:
        num_target = batch.num_target_predictions.to(loss.device)
        self._sums.add_target(loss.detach() * num_target, num_target)
        if rehearsed_logits is None:
            if batch.is_rehearsed:
                raise InvalidTraining(
                    "rehearsed rows take a forward pass of their own, and its outputs are missing; call the model with "
                    "rehearsed_inputs too wherever is_rehearsed is true"
                )
            return loss
        losses = batch.losses(rehearsed_logits)
        self._report(batch, losses)
        # A pass whose outputs are in no loss would leave other ranks waiting for its gradients.
        return batch.weigh(loss, losses) + 0.0 * rehearsed_logits[:, :1, 0].float().sum()

    def _report(self, batch: Added, losses: Losses) -> tuple[Tensor, Tensor]:
        """The nats of the rehearsed rows of this rank, and how many predictions they hold."""
        self.loop.report(batch, losses)
        rehearsed_nats, num_rehearsed = losses.total()
        self._sums.add_rehearsed(rehearsed_nats, num_rehearsed)
        return rehearsed_nats, num_rehearsed

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
