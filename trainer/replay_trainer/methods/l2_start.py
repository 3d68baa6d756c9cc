"""L2-SP: the weights may not move far from those that training begins with.

Li, Grandvalet, Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", ICML 2018:

    loss + weight / 2 * sum_j (theta_j - theta0_j) ** 2

Of every weight that learns; with LoRA those are the adapters' alone. It needs no pretraining text and no forward pass,
and so is a baseline for methods that do.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


class StartPenalty:
    """The gradient of the penalty. Build it while the weights are those that training begins with.

    Args:
        parameters: the weights that learn; a copy of them is kept.
        weight: of the penalty, nats.
    """

    def __init__(self, parameters: Iterable[Tensor], weight: float) -> None:
        self._weight = weight
        self._pairs = [(each, each.detach().clone()) for each in parameters]

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add it to the gradients of the weights that have one, before they are clipped; averaged ones stay so."""
        for now, start in self._pairs:
            if now.grad is not None:
                now.grad.add_(now - start, alpha=self._weight)
