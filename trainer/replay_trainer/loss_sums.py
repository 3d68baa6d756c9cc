"""The mean losses of fine-tuning and of rehearsed rows between two lines of a training log."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

_NUM_SUMS = 4


@dataclass(slots=True)
class LossSums:
    """Adds up nats and predictions on their device, without waiting for it."""

    _sums: Tensor | None = field(default=None, init=False, repr=False)
    """[target nats, target predictions, rehearsed nats, rehearsed predictions]."""

    def add_target(self, nats: Tensor, num_predictions: Tensor | int) -> None:
        """Add the sum of nats over some fine-tuning predictions; sums that are not finite are left out."""
        self._add(0, nats, num_predictions)

    def add_rehearsed(self, nats: Tensor, num_predictions: Tensor | int) -> None:
        """Likewise of rehearsed predictions."""
        self._add(2, nats, num_predictions)

    def take(self, total: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """The means since the last call, nats per prediction; a kind of row that nothing was measured of is missing.

        Args:
            total: the sum of a tensor over all processes, each of which calls this.
            device: where the sums are.
        """
        sums = self._sums if self._sums is not None else torch.zeros(_NUM_SUMS, device=device)
        self._sums = None
        target_nats, target, rehearsed_nats, rehearsed = total(sums).tolist()
        found = {"target_loss": (target_nats, target), "rehearsed_loss": (rehearsed_nats, rehearsed)}
        return {name: nats / num for name, (nats, num) in found.items() if num}

    def _add(self, first: int, nats: Tensor, num_predictions: Tensor | int) -> None:
        nats = nats.detach().float()
        if self._sums is None:
            self._sums = torch.zeros(_NUM_SUMS, device=nats.device)
        pair = torch.stack([nats, torch.as_tensor(num_predictions, device=nats.device).float()])
        self._sums[first : first + 2] += torch.where(nats.isfinite(), pair, 0.0)
