"""What rehearsed rows learn of the base model: from what their corpus stores of it, or from the base model itself.

Shapes: R rehearsed rows, T tokens, S = T - 1 predictions, k stored tokens, V vocabulary, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from replay_service.classification.losses import ClassLosses, class_divergences
from replay_service.classification.model import logits_of
from replay_service.language.losses import TokenLosses
from replay_service.language.model_parts import BaseStates, with_divergence
from replay_service.wire.batches import Batch
from replay_trainer.errors import CorpusMismatch, InvalidTraining
from replay_trainer.methods.distill import distilled_nats
from replay_trainer.methods.teacher import Teacher

RehearsalLoss = Literal["cross_entropy", "distill", "mixed"]

DISTILLED_SHARE: Final = {"cross_entropy": 0.0, "distill": 1.0, "mixed": 0.5}
"""Of the divergence from the base model in the loss of a rehearsed prediction; the rest is cross-entropy."""


@dataclass(frozen=True, slots=True)
class Distillation:
    """How the rehearsed rows of a loop learn from the base model.

    Attributes:
        share: of the divergence in the loss of a rehearsed prediction; the rest is cross-entropy.
        teacher: the base model; None where the rows learn from what their corpus stores of it.
    """

    share: float
    teacher: Teacher | None

    def measured(
        self, losses: TokenLosses, rehearsed: Batch, logits_RTV: Tensor, inputs: dict[str, Any]
    ) -> TokenLosses:
        """The losses of rehearsed rows with their divergence from the base model.

        Args:
            logits_RTV: of the rehearsed rows alone.
            inputs: what the base model is called with.

        Raises:
            CorpusMismatch: when the corpus does not store what there is to learn from.
        """
        if self.teacher is None:
            return losses._replace(divergence_RS=stored_divergence(rehearsed, logits_RTV, losses.mask_BS))
        with self.teacher.speaking() as base:
            base_RTV = base(**inputs).logits
        return with_divergence(losses, logits_RTV, BaseStates(base_RTV))

    def measured_samples(self, losses: ClassLosses, logits_RC: Tensor, inputs: Mapping[str, Tensor]) -> ClassLosses:
        """The losses of rehearsed samples to classify with their divergence from the base model.

        Args:
            logits_RC: of the rehearsed samples alone.
            inputs: what the base model is called with, see `logits_of`.

        Raises:
            InvalidTraining: when the model has fewer classes than the base model.
        """
        assert self.teacher is not None, "a corpus of samples to classify stores nothing to learn from"
        with self.teacher.speaking() as base:
            base_RD = logits_of(base, inputs)
        if base_RD.shape[1] > logits_RC.shape[1]:
            raise InvalidTraining(
                f"the model has {logits_RC.shape[1]} classes, and its teacher has {base_RD.shape[1]}; keep the classes "
                "of the base model, and put new ones after them"
            )
        nats_R = class_divergences(logits_RC, base_RD)
        return losses._replace(divergence_B=nats_R.masked_fill(~losses.mask_B, 0.0))

    def learned(self, losses: TokenLosses | ClassLosses) -> Tensor:
        """What each rehearsed prediction costs, float32 [R, S] of tokens and [R] of samples, nats."""
        nll, divergence = (
            (losses.nll_BS, losses.divergence_RS)
            if isinstance(losses, TokenLosses)
            else (losses.nll_B, losses.divergence_B)
        )
        return nll if divergence is None else (1.0 - self.share) * nll + self.share * divergence


def stored_divergence(rehearsed: Batch, logits_RTV: Tensor, mask_RS: Tensor) -> Tensor:
    """The divergence of each prediction from what the corpus stores of the base model, float32 [R, S], nats.

    Raises:
        CorpusMismatch: when it stores nothing, or the model knows fewer tokens.
    """
    if rehearsed.topk_ids is None or rehearsed.topk_logprobs is None:
        raise CorpusMismatch(
            f"corpus {rehearsed.header.corpus!r} does not store the base model's likeliest tokens, which distilled "
            "rehearsal learns from; take the base model as the teacher, ingest it with --store-topk 8, or set "
            "rehearsal_loss to cross_entropy"
        )
    num_logits = logits_RTV.shape[2]
    if rehearsed.topk_ids.size and rehearsed.topk_ids.max() >= num_logits:
        raise CorpusMismatch(
            f"corpus {rehearsed.header.corpus!r} stores token ids up to {rehearsed.topk_ids.max()} of its base model, "
            f"but the model predicts only {num_logits} tokens; tune the base model, or set rehearsal_loss to "
            "cross_entropy"
        )
    ids_RSk = torch.from_numpy(rehearsed.topk_ids.astype("int64")).to(logits_RTV.device)
    logprobs_RSk = torch.from_numpy(rehearsed.topk_logprobs.copy()).to(logits_RTV.device)
    return distilled_nats(logits_RTV, ids_RSk, logprobs_RSk, mask_RS)
