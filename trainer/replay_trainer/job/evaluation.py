"""Held-out text: the model's mean loss on each domain, and from that what it forgot."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from replay_service.language.model import autocast
from replay_service.language.model_parts import LanguageLosses
from replay_service.language.precision import Precision
from replay_trainer.batches.target import TrainingRows

TARGET = "target"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows of each domain; the fine-tuning domain stands under `target`."""

    rows: dict[str, TrainingRows]

    @torch.no_grad()
    def losses(
        self,
        model: Any,
        precision: Precision,
        device: torch.device,
        rank: int,
        world_size: int,
        sum_over_ranks: Callable[[Tensor], Tensor],
    ) -> dict[str, float]:
        """Mean loss of each domain, nats per predicted token that counts; each rank measures its share of the rows.

        Where rows have weights, tokens of weight 0 do not count, as in training, and all others count alike.
        """
        model.eval()
        measure = LanguageLosses(model)
        sums = torch.zeros(len(self.rows), 2, dtype=torch.float64, device=device)
        for index, rows in enumerate(self.rows.values()):
            mine = np.arange(rank, len(rows), world_size)
            if not len(mine):
                continue
            ids_BT = torch.from_numpy(rows.input_ids[mine].astype(np.int64)).to(device)
            length_B = torch.from_numpy(rows.length[mine].astype(np.int64)).to(device)
            with autocast(precision, device):
                losses = measure(ids_BT, length_B)
            counted_BS = losses.mask_BS
            if rows.weight is not None:
                counted_BS = counted_BS & torch.from_numpy(rows.weight[mine, 1:] > 0).to(device)
            sums[index, 0] = losses.nll_BS.where(counted_BS, 0.0).sum()
            sums[index, 1] = counted_BS.sum()
        model.train()
        totals = sum_over_ranks(sums).cpu().numpy()
        return {domain: float(nll / tokens) for domain, (nll, tokens) in zip(self.rows, totals, strict=True)}


def forgetting(losses: dict[str, float], base_losses: dict[str, float]) -> dict[str, float]:
    """Loss minus base loss of each pretraining domain, nats per token."""
    return {domain: losses[domain] - base_losses[domain] for domain in base_losses if domain != TARGET}
