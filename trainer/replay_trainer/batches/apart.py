"""Rehearsed rows of tokens beside a loader's batch, in a forward pass of their own.

In one batch the shorter rows are padded to the longer ones: a rehearsed row of 512 tokens widens 8 rows of 50 tokens
from 400 tokens to 4,608. Two passes take each kind at its own width, in one backward pass. They also leave alone
whatever the loader's batch holds, and whatever a trainer makes of it.

Shapes: R rehearsed rows, T tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from replay_service.language.losses import TokenLosses, token_losses
from replay_service.wire.batches import Batch
from replay_trainer.batches.added import IGNORED, Added, Losses
from replay_trainer.batches.padding_free import num_samples
from replay_trainer.batches.rows import distilled_losses, inputs_of, reported, rows_for_report
from replay_trainer.errors import InvalidTraining

WORTH: Final = 0.2
"""The share of tokens that two passes must save at least: each pass has costs of its own."""


@dataclass(frozen=True, slots=True)
class ApartInputs(Added):
    """A batch of a loader as it came, and rehearsed rows that are run after it."""

    @property
    def target_labels(self) -> Tensor:
        """int64 [rows, tokens], or of a flat batch [1, tokens]."""
        labels: Tensor = self.inputs["labels"]
        return labels

    @property
    def num_target_rows(self) -> int:
        return num_samples(self.inputs["position_ids"]) if self.is_flat else len(self.inputs["labels"])

    @property
    def num_predictions(self) -> Tensor:
        """int64 scalar: predictions that count, of all rows."""
        return self.num_target_predictions + int((self.rehearsed_labels[:, 1:] != IGNORED).sum())

    @property
    def num_target_predictions(self) -> Tensor:
        """int64 scalar: those of the loader's batch."""
        counted: Tensor = (self.inputs["labels"][:, 1:] != IGNORED).sum()
        return counted

    @property
    def rehearsed_inputs(self) -> dict[str, Tensor]:
        """What the model is called with for the rehearsed rows, int64 [R, T]; one token where there are none.

        They are where the loader's batch is. A rank without rehearsed rows runs the model too where others do: in a
        pass they wait for each other.
        """
        found = {"input_ids": torch.zeros(1, 1, dtype=torch.int64), "attention_mask": torch.ones(1, 1).long()}
        if self.num_rehearsed:
            found = inputs_of(self.rehearsed)
            del found["labels"]
        return {name: each.to(self.inputs["labels"].device) for name, each in found.items()}

    @property
    def rehearsed_labels(self) -> Tensor:
        """int64 [R, T], with -100 where nothing is predicted."""
        return inputs_of(self.rehearsed)["labels"]

    def losses(self, logits_RTV: Tensor) -> TokenLosses:
        """Losses of the rehearsed rows, [R, T - 1]; differentiable.

        Args:
            logits_RTV: of `rehearsed_inputs`.

        Raises:
            InvalidTraining: when these are not its logits.
        """
        alone = rows_for_report(self.rehearsed).to(logits_RTV.device)
        if not self.num_rehearsed:
            nothing = logits_RTV[:0, :, 0].float()
            return TokenLosses(nothing, nothing > 0, nothing > 0)
        if logits_RTV.shape[:2] != alone.input_ids_BT.shape:
            raise InvalidTraining(
                f"the logits are of shape {tuple(logits_RTV.shape)}, the rehearsed rows of "
                f"{tuple(alone.input_ids_BT.shape)}; give those of a pass over rehearsed_inputs"
            )
        losses = token_losses(logits_RTV, alone.input_ids_BT, alone.length_B)
        return distilled_losses(losses, logits_RTV, self.rehearsed, self.distillation)

    def loss_rows(self, losses: Losses, rank: int) -> np.ndarray:
        """The report of the rehearsed rows; see `replay_trainer.batches.mixing`."""
        return reported(self.rehearsed, losses, rank)

    def weigh(self, loss: Tensor, losses: Losses, per_prediction: Tensor | float | None = None) -> Tensor:
        """The loss of all rows, from that of the loader's batch alone.

        Args:
            loss: of the loader's batch: the sum of nats times `per_prediction`, or without it the mean.
            losses: of the rehearsed rows.
            per_prediction: by default the loss becomes the mean over all predictions.

        Raises:
            InvalidTraining: when the loss has a gradient and the losses have none.
        """
        assert isinstance(losses, TokenLosses)
        if loss.requires_grad and self.num_rehearsed and not losses.nll_BS.requires_grad:
            raise InvalidTraining(
                "the logits of the rehearsed rows have no gradient; run the model on them in training"
            )
        learned = losses.nll_BS if self.distillation is None else self.distillation.learned(losses)
        rehearsed = self.rehearsal_weight * learned.sum()
        if per_prediction is not None:
            return loss + rehearsed * per_prediction
        return (loss * self.num_target_predictions.to(loss.device) + rehearsed) / self.num_predictions.clamp(min=1)


def tokens_saved(parts: Sequence[Mapping[str, Any]], rehearsed: Batch) -> tuple[int, int]:
    """How many tokens two passes would save in the micro-batches of a step, and how many one pass takes."""
    saved = taken = 0
    width_r = rehearsed.input_ids.shape[1]
    for number, inputs in enumerate(parts):
        num_rows, width = inputs["labels"].shape
        num_rehearsed = len(rehearsed) * (number + 1) // len(parts) - len(rehearsed) * number // len(parts)
        together = (num_rows + num_rehearsed) * (max(width, width_r) if num_rehearsed else width)
        saved += together - num_rows * width - num_rehearsed * width_r
        taken += together
    return saved, taken
