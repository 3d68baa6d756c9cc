"""A loader's batch with rehearsed rows at its end, whatever is rehearsed."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from replay_service.classification.losses import IGNORED as IGNORED
from replay_service.classification.losses import ClassLosses
from replay_service.language.losses import TokenLosses
from replay_service.wire.batches import Batch
from replay_trainer.batches.distilled import Distillation
from replay_trainer.batches.padding_free import is_padding_free
from replay_trainer.errors import InvalidTraining

Losses = TokenLosses | ClassLosses
"""Of rehearsed rows: a loss for each token of a language corpus, for each sample to classify."""


@dataclass(frozen=True, slots=True)
class Added(ABC):
    """A batch of a loader with rehearsed rows at its end.

    Attributes:
        inputs: what the model is called with. Without rehearsed rows it is the loader's batch as it came.
        rehearsed: the rehearsed rows.
        rehearsal_weight: what a rehearsed prediction weighs beside a fine-tuning one.
        distillation: how rehearsed rows learn from the base model; None where they learn by cross-entropy.
        part: which micro-batch of its optimizer step it is, counted from 0.
    """

    inputs: dict[str, Any]
    rehearsed: Batch
    rehearsal_weight: float = 1.0
    distillation: Distillation | None = None
    part: int = 0

    @property
    def num_rehearsed(self) -> int:
        return len(self.rehearsed)

    @property
    def is_rehearsed(self) -> bool:
        """Whether any rank rehearses in this step. Ranks that run a model together do so alike."""
        return self.rehearsed.only_step.num_rehearsed > 0

    @property
    def is_flat(self) -> bool:
        """Whether the loader's batch is one row of samples end to end."""
        return is_padding_free(self.inputs)

    @property
    @abstractmethod
    def target_labels(self) -> Tensor:
        """The labels of the loader's rows alone: [rows], [rows, tokens], or of a flat batch [1, tokens]."""

    @property
    @abstractmethod
    def num_target_rows(self) -> int:
        """The loader's rows; of a flat batch, its samples."""

    @property
    @abstractmethod
    def num_predictions(self) -> Tensor:
        """int64 scalar: predictions that count, of all rows."""

    @abstractmethod
    def losses(self, logits: Tensor) -> Losses:
        """Losses of the rehearsed rows alone; differentiable.

        Raises:
            InvalidTraining: when these are not the logits of this batch.
        """

    @abstractmethod
    def loss_rows(self, losses: Losses, rank: int) -> np.ndarray:
        """The report of `rank` on the rehearsed rows: LOSS_ROW [R]; not measured where a loss is not finite."""

    def weigh(self, loss: Tensor, losses: Losses, per_prediction: Tensor | float | None = None) -> Tensor:
        """A loss in which all predictions weigh alike, with the rehearsed ones at `rehearsal_weight`, learning what
        they are to learn.

        Args:
            loss: sum of nats over the predictions of this batch that count, times `per_prediction`.
            losses: of the rehearsed rows.
            per_prediction: by default 1 / `num_predictions`, which makes of the loss the mean.

        Raises:
            InvalidTraining: when the loss has a gradient and the losses have none.
        """
        if self.rehearsal_weight == 1.0 and self.distillation is None:
            return loss
        nll = losses.nll_BS if isinstance(losses, TokenLosses) else losses.nll_B
        if loss.requires_grad and self.num_rehearsed and not nll.requires_grad:
            raise InvalidTraining(
                f"rehearsed rows have the weight {self.rehearsal_weight} or are distilled, but their logits have no "
                "gradient; take logits of the training forward pass, or leave rehearsal_weight at 1 and rehearsal_loss "
                "at cross_entropy"
            )
        learned = nll if self.distillation is None else self.distillation.learned(losses)
        share = 1.0 / self.num_predictions.clamp(min=1) if per_prediction is None else per_prediction
        return loss + (self.rehearsal_weight * learned - nll).sum() * share
