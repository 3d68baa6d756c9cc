"""Mixing: rehearsed rows and fine-tuning rows in one batch, and what is reported of the rehearsed ones.

    stage     takes                          does                              gives
    mix       TrainingRows, Batch            puts rehearsed rows last          MixedBatch
    report    MixedBatch, TokenLosses        means, flips, of rehearsed rows   LOSS_ROW records

Shapes: B rows of the local batch, R of them rehearsed, T tokens, S = T - 1 predictions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from replay_service.language.losses import TokenLosses
from replay_service.wire.batches import Batch
from replay_service.wire.losses import LOSS_ROW, MOST_NATS
from replay_trainer.batches.target import TrainingRows


@dataclass(frozen=True, slots=True)
class MixedBatch:
    """One rank's rows of one step."""

    input_ids_BT: Tensor
    """int64 [B, T]; the last R rows are rehearsed."""
    length_B: Tensor
    """int64 [B]."""
    rehearsed: Batch | None
    """None in a job that rehearses nothing."""
    weight_BT: Tensor | None = None
    """float32 [B, T]: what the prediction of each token weighs in the loss; 0 where it does not count. None: 1."""

    @property
    def num_rehearsed(self) -> int:
        return 0 if self.rehearsed is None else len(self.rehearsed)

    @property
    def num_target(self) -> int:
        return len(self.length_B) - self.num_rehearsed

    def counted(self) -> Tensor:
        """bool [B, S]: predictions that count."""
        positions_S = torch.arange(1, self.input_ids_BT.shape[1], device=self.length_B.device)
        within_BS = positions_S < self.length_B[:, None]
        return within_BS if self.weight_BT is None else within_BS & (self.weight_BT[:, 1:] > 0)

    def to(self, device: torch.device) -> "MixedBatch":
        weight = None if self.weight_BT is None else self.weight_BT.to(device)
        return MixedBatch(self.input_ids_BT.to(device), self.length_B.to(device), self.rehearsed, weight)

    def pieces(self, num_rows: int) -> Iterator["MixedBatch"]:
        """The batch, in parts of at most `num_rows` rows; 0 for the whole. Even an empty one is one part."""
        num_rows = num_rows or max(1, len(self.length_B))
        for first in range(0, max(1, len(self.length_B)), num_rows):
            rows = slice(first, first + num_rows)
            weight = None if self.weight_BT is None else self.weight_BT[rows]
            yield MixedBatch(self.input_ids_BT[rows], self.length_B[rows], self._rehearsed_within(rows), weight)

    def _rehearsed_within(self, rows: slice) -> Batch | None:
        if self.rehearsed is None:
            return None
        return self.rehearsed.rows(slice(max(0, rows.start - self.num_target), max(0, rows.stop - self.num_target)))


def mix(target: TrainingRows, rehearsed: Batch | None, rehearsal_weight: float = 1.0) -> MixedBatch:
    """A local batch of fine-tuning rows and the rows to rehearse; both have T tokens a row."""
    parts = [target] if rehearsed is None else [target, TrainingRows(rehearsed.input_ids, rehearsed.length)]
    input_ids = np.concatenate([part.input_ids for part in parts]).astype(np.int64)
    length = np.concatenate([part.length for part in parts]).astype(np.int64)
    weight = None
    if target.weight is not None or (rehearsal_weight != 1.0 and rehearsed is not None):
        weight = np.full(input_ids.shape, rehearsal_weight, dtype=np.float32)
        weight[: len(target)] = 1.0 if target.weight is None else target.weight
    ids_BT, length_B = torch.from_numpy(input_ids), torch.from_numpy(length)
    return MixedBatch(ids_BT, length_B, rehearsed, None if weight is None else torch.from_numpy(weight))


def loss_rows(batch: MixedBatch, losses: TokenLosses, step: int, rank: int) -> np.ndarray:
    """The report of the rehearsed rows: LOSS_ROW [R].

    A row of length 0, which the service could not read, is reported with num_tokens 0: it could not be measured. So is
    one whose loss is not finite (`unmeasured_where_beyond`).

    A flip is a token that the base model's argmax got right and the model's, in this forward pass, gets wrong: the
    collateral damage of mix-cd (Bai et al., 2024), counted by token. A gain is the reverse.
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
    rows["num_gains"] = (~base_correct_RT[:, 1:] & correct_RS & mask_RS).sum(axis=1)
    return unmeasured_where_beyond(rows)


def unmeasured_where_beyond(rows: np.ndarray) -> np.ndarray:
    """LOSS_ROW [n] in which a loss that is not finite, or beyond what a report may say, counts as not measured: the run
    waits for its sample no longer, and learns nothing."""
    # Also where the loss is no number at all.
    beyond = ~(np.abs(rows["loss_nats"]) <= MOST_NATS)
    for name in ("loss_nats", "num_tokens", "num_flips", "num_gains"):
        rows[name][beyond] = 0
    return rows
