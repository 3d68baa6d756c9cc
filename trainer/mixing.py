"""Mixing: rehearsed rows take the place of fine-tuning rows, so that the local batch keeps its size.

    stage     takes                          does                              gives
    mix       PackedRows, Batch              puts rehearsed rows last          MixedBatch
    report    MixedBatch, TokenLosses        means, flips, of rehearsed rows   LOSS_ROW records

Shapes: B rows of the local batch, R of them rehearsed, T tokens, S = T - 1 predictions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from replay_service.gateway.wire import Batch
from replay_service.language.losses import TokenLosses
from replay_service.language.packing import PackedRows
from replay_service.sampling.events import LOSS_ROW


@dataclass(frozen=True, slots=True)
class MixedBatch:
    """One rank's rows of one step."""

    input_ids_BT: Tensor
    """int64 [B, T]; the last R rows are rehearsed."""
    length_B: Tensor
    """int64 [B]."""
    rehearsed: Batch | None
    """None in a job that rehearses nothing."""

    @property
    def num_rehearsed(self) -> int:
        return 0 if self.rehearsed is None else len(self.rehearsed)

    @property
    def num_target(self) -> int:
        return len(self.length_B) - self.num_rehearsed

    def to(self, device: torch.device) -> "MixedBatch":
        return MixedBatch(self.input_ids_BT.to(device), self.length_B.to(device), self.rehearsed)


def mix(target: PackedRows, rehearsed: Batch | None) -> MixedBatch:
    """A local batch of fine-tuning rows and the rows to rehearse; both have T tokens a row."""
    parts: list[PackedRows | Batch] = [target] if rehearsed is None else [target, rehearsed]
    input_ids = np.concatenate([part.input_ids for part in parts]).astype(np.int64)
    length = np.concatenate([part.length for part in parts]).astype(np.int64)
    return MixedBatch(torch.from_numpy(input_ids), torch.from_numpy(length), rehearsed)


def loss_rows(batch: MixedBatch, losses: TokenLosses, step: int, rank: int) -> np.ndarray:
    """What to report of the rehearsed rows: LOSS_ROW [R], less the rows whose loss is not finite.

    A row of length 0, which the service could not read, is reported with num_tokens 0: it could not be measured.

    A flip is a token that the base model's argmax got right and the model's, in this forward pass, gets wrong: the
    collateral damage of mix-cd (Bai et al., 2024), counted by token.
    """
    first, rehearsed = batch.num_target, batch.rehearsed
    if rehearsed is None:
        return np.empty(0, dtype=LOSS_ROW)
    correct_RS = losses.correct_BS[first:].cpu().numpy()
    base_correct_RT = np.unpackbits(
        rehearsed.base_correct, axis=1, count=rehearsed.input_ids.shape[1], bitorder="little"
    ).astype(bool)
    mask_RS = losses.mask_BS[first:].cpu().numpy()
    rows = np.empty(len(rehearsed), dtype=LOSS_ROW)
    rows["step"] = step
    rows["rank"] = rank
    rows["attempt"] = rehearsed.header.attempt
    rows["sample_id"] = rehearsed.sample_id
    rows["loss_nats"] = losses.mean_nats()[first:].detach().cpu().numpy()
    rows["num_tokens"] = mask_RS.sum(axis=1)
    rows["num_flips"] = (base_correct_RT[:, 1:] & ~correct_RS & mask_RS).sum(axis=1)
    finite: np.ndarray = rows[np.isfinite(rows["loss_nats"])]
    return finite
