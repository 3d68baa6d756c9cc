"""Losses and hits of labelled samples, the one definition that base losses and training losses share.

Shapes: B samples, C classes.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

IGNORED: Final = -100
"""The label of a sample that does not count, as everywhere in PyTorch."""


class ClassLosses(NamedTuple):
    """Loss and hit of each label, from a model's logits."""

    nll_B: Tensor
    """float32 [B], nats; zero where the label does not count. Differentiable."""
    correct_B: Tensor
    """bool [B]: no class is likelier than the label; False where that does not count."""
    mask_B: Tensor
    """bool [B]: the label counts."""
    divergence_B: Tensor | None = None
    """float32 [B], nats: how far the prediction is from the base model's, zero where the label does not count.
    Differentiable; None where nobody asked."""

    def total(self) -> tuple[Tensor, Tensor]:
        """The sum of nats, and how many labels it is over."""
        return self.nll_B.sum(), self.mask_B.sum()


def class_losses(logits_BC: Tensor, label_B: Tensor) -> ClassLosses:
    """The cross-entropy of each sample.

    Args:
        logits_BC: any float type; taken to float32 before the softmax.
        label_B: int64, classes below C, or `IGNORED`.
    """
    logits_BC = logits_BC.float()
    mask_B = label_B != IGNORED
    nll_B = cross_entropy(logits_BC, label_B, reduction="none", ignore_index=IGNORED)
    with torch.no_grad():
        chosen_B = logits_BC.gather(1, label_B.clamp(min=0)[:, None]).squeeze(1)
        correct_B = (chosen_B >= logits_BC.amax(dim=1)) & mask_B
    return ClassLosses(nll_B, correct_B, mask_B)


def class_divergences(logits_BC: Tensor, base_BD: Tensor) -> Tensor:
    """The divergence of each prediction from the base model's, float32 [B], nats.

    It is KL(base || model), over all classes of the model. The base model gives no probability to the classes that it
    does not know, which are the last ones.

    Args:
        logits_BC: of the model in training, any float type.
        base_BD: of the base model, any float type; D is at most C.
    """
    log_p_BD, log_q_BC = base_BD.float().log_softmax(dim=1), logits_BC.float().log_softmax(dim=1)
    nats_BD = kl_div(log_q_BC[:, : base_BD.shape[1]], log_p_BD, reduction="none", log_target=True)
    return nats_BD.sum(dim=1)
