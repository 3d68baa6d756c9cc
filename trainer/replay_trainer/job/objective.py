"""The objective: what the four methods make of one forward pass.

    loss = (sum over predictions of weight * nats) / counted predictions  +  LDIFS weight * mean drift

    weight  of a fine-tuning token: 1, or FLOW's; 0 for tokens of a prompt. Of a rehearsed one: `rehearsal_weight`
    nats    the cross-entropy; for rehearsed tokens the divergence from the base model's distribution, if that is asked:
            from what the corpus stores of it, or from the base model itself
    counted predictions and tokens are those of the whole global batch, so that ranks and parts of a batch add up

As in FLOW's code the sum is divided by how many predictions count and not by their weights. With every method off it is
the mean loss of the plain loop, bit for bit.

Shapes: B rows, the last R of them rehearsed, T tokens, S = T - 1 predictions, V vocabulary.
"""

import contextlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from replay_service.language.losses import TokenLosses, token_losses
from replay_service.language.model import autocast
from replay_service.language.model_parts import BaseStates, ModelParts, with_divergence
from replay_service.language.precision import Precision
from replay_service.sampling.trained import TrainedCounts
from replay_trainer.batches.distilled import DISTILLED_SHARE, RehearsalLoss, stored_divergence
from replay_trainer.batches.mixing import MixedBatch
from replay_trainer.job.stopwatch import Stopwatch
from replay_trainer.methods.ldifs import FeatureDrift
from replay_trainer.methods.teacher import Teacher


class Counts(NamedTuple):
    """The counts that a loss is a mean over; of a rank, or of the whole job."""

    target: float
    """Predictions of fine-tuning tokens that count."""
    rehearsed: float
    """Predictions of rehearsed tokens."""
    rehearsed_rows: float
    target_tokens: float
    """Real tokens of fine-tuning rows, of prompts too."""
    rows: float
    """Rows of both kinds."""

    @classmethod
    def of(cls, batch: MixedBatch) -> Tensor:
        """A batch's own, float64 [5], to be summed over the ranks; quickest before the batch goes to a GPU."""
        counted_BS, first = batch.counted(), batch.num_target
        predictions = (counted_BS[:first].sum(), counted_BS[first:].sum())
        parts = (*predictions, batch.num_rehearsed, batch.length_B[:first].sum(), len(batch.length_B))
        return torch.tensor([float(part) for part in parts], dtype=torch.float64, device=batch.length_B.device)

    def trained(self) -> TrainedCounts:
        """As the service counts them."""
        num_tokens = int(self.target + self.rehearsed)
        return TrainedCounts(int(self.rows), int(self.rehearsed_rows), num_tokens, int(self.rehearsed))


class BaseModel(NamedTuple):
    """The base model as the teacher of rehearsed rows."""

    model: Teacher
    parts: ModelParts | None
    """Its body and head, where the model in training gives losses and can be split."""


class Measured(NamedTuple):
    """The losses of one part of a batch."""

    loss: Tensor
    """This part's share of the objective; differentiable."""
    losses: TokenLosses
    nats: Tensor
    """float64 [3]: cross-entropy of the fine-tuning predictions that count, and of the rehearsed ones, unweighted; and
    drift, all summed."""
    num_nonfinite_rows: Tensor
    """int64 scalar: rows whose loss is not finite, of both kinds."""


@dataclass(slots=True)
class Objective:
    """How a batch is measured.

    Attributes:
        precision: the arithmetic of forward passes.
        rehearsal_loss: what rehearsed rows learn; `mixed` is half of each.
        drift: LDIFS, or None.
        stopwatch: is told where the time goes.
        gives_losses: whether the model gives losses (`LanguageLosses`) and not logits.
        teacher: the base model that rehearsed rows learn from; None where they learn from what the corpus stores.
    """

    precision: Precision
    rehearsal_loss: RehearsalLoss
    drift: FeatureDrift | None
    stopwatch: Stopwatch
    gives_losses: bool = False
    teacher: BaseModel | None = None

    def measure(self, model: Any, batch: MixedBatch, of_job: Counts, world_size: int) -> Measured:
        """One forward pass of a part of a batch, and its share of the objective.

        Gradients are averaged over the ranks, so the share is multiplied by `world_size`.
        """
        ids_BT, device = batch.input_ids_BT, batch.input_ids_BT.device
        logits_BTV: Tensor | None = None
        base = self._base_states(ids_BT[batch.num_target :])
        recording = contextlib.nullcontext() if self.drift is None else self.drift.recording()
        with self.stopwatch("forward"), autocast(self.precision, device), recording:
            if self.gives_losses:
                losses = model(ids_BT, batch.length_B, base)
            else:
                logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
        if logits_BTV is not None:
            with self.stopwatch("losses"):
                losses = token_losses(logits_BTV, ids_BT, batch.length_B)
                losses = losses if base is None else with_divergence(losses, logits_BTV, base)
        num_predictions = max(1.0, of_job.target + of_job.rehearsed)
        loss = self._weighed(batch, losses, logits_BTV).sum() * world_size / num_predictions
        moved = torch.zeros((), device=device)
        if self.drift is not None:
            with self.stopwatch("drift"):
                moved = self._moved(batch, self.drift)
            loss = loss + self.drift.form.weight * moved * world_size / max(1.0, of_job.target_tokens)
        num_nonfinite_rows = (~losses.nll_BS.detach().sum(dim=1).isfinite()).sum()
        return Measured(loss, losses, self._nats(batch, losses, moved), num_nonfinite_rows)

    def _base_states(self, ids_RT: Tensor) -> BaseStates | None:
        """What the base model says of the rehearsed rows, if it is to be asked."""
        if self.teacher is None or not len(ids_RT):
            return None
        with self.stopwatch("teacher"), self.teacher.model.speaking() as base, autocast(self.precision, ids_RT.device):
            return BaseStates.of(base, self.teacher.parts, ids_RT)

    def _weighed(self, batch: MixedBatch, losses: TokenLosses, logits_BTV: Tensor | None) -> Tensor:
        """Weighed nats of each prediction, [B, S]."""
        nats_BS, share, first = losses.nll_BS, DISTILLED_SHARE[self.rehearsal_loss], batch.num_target
        distilled_RS = losses.divergence_RS
        if share and batch.num_rehearsed and distilled_RS is None:
            assert logits_BTV is not None
            with self.stopwatch("distill"):
                assert batch.rehearsed is not None
                distilled_RS = stored_divergence(batch.rehearsed, logits_BTV[first:], losses.mask_BS[first:])
        if distilled_RS is not None:
            rehearsed_RS = (1.0 - share) * nats_BS[first:] + share * distilled_RS
            nats_BS = torch.cat([nats_BS[:first], rehearsed_RS])
        return nats_BS if batch.weight_BT is None else nats_BS * batch.weight_BT[:, 1:]

    def _moved(self, batch: MixedBatch, drift: FeatureDrift) -> Tensor:
        rows = slice(0, batch.num_target)
        ids_BT = batch.input_ids_BT
        mask_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device) < batch.length_B[:, None]

        def run_base(base: Any) -> object:
            with autocast(self.precision, ids_BT.device):
                # What peft wraps is a causal language model too; its logits are of no use here.
                bare = base.get_base_model() if hasattr(base, "get_base_model") else base
                return bare.base_model(input_ids=ids_BT[rows], use_cache=False)

        return drift.of(mask_BT, run_base, rows=rows).total

    @staticmethod
    def _nats(batch: MixedBatch, losses: TokenLosses, moved: Tensor) -> Tensor:
        nll_BS, first = losses.nll_BS.detach().double(), batch.num_target
        if batch.weight_BT is not None:
            nll_BS = nll_BS * (batch.weight_BT[:, 1:] > 0)
        return torch.stack([nll_BS[:first].sum(), nll_BS[first:].sum(), moved.detach().double()])
