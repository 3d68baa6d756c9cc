"""Rehearsed rows of tokens at the end of a loader's batch, padded like its own or, in a flat batch, end to end.

Shapes: B rows, the last R of them rehearsed, T tokens, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from replay_service.language.losses import TokenLosses, token_losses
from replay_service.wire.batches import Batch
from replay_trainer.batches.added import IGNORED, Added, Losses
from replay_trainer.batches.distilled import Distillation
from replay_trainer.batches.mixing import MixedBatch, loss_rows
from replay_trainer.batches.padding_free import (
    add_flat_rows,
    flat_logits,
    flat_losses,
    is_padding_free,
    num_samples,
)
from replay_trainer.errors import InvalidTraining

_FILLING: Final = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
"""The fields that a batch may hold, and their values in places of padding."""


@dataclass(frozen=True, slots=True)
class MixedInputs(Added):
    """A batch of a loader with rehearsed rows at its end.

    Its inputs are `input_ids`, `attention_mask` and `labels`, each int64 [B, T]. T is the wider of the two kinds of
    rows. Of a flat batch they are what `replay_trainer.batches.padding_free` makes, one row of all samples.
    """

    @property
    def target_labels(self) -> Tensor:
        """int64 [B - R, T], or of a flat batch [1, tokens]."""
        labels: Tensor = self.inputs["labels"]
        if self.is_flat:
            return labels[:, : labels.shape[1] - int(self.rehearsed.length.sum())]
        return labels[: len(labels) - self.num_rehearsed]

    @property
    def num_target_rows(self) -> int:
        labels = self.target_labels
        return num_samples(self.inputs["position_ids"][:, : labels.shape[1]]) if self.is_flat else len(labels)

    @property
    def num_predictions(self) -> Tensor:
        """int64 scalar: predictions that count, of all rows."""
        counted: Tensor = (self.inputs["labels"][:, 1:] != IGNORED).sum()
        return counted

    def losses(self, logits_BTV: Tensor) -> TokenLosses:
        """Losses of the rehearsed rows alone, [R, seq_len - 1]; differentiable.

        Raises:
            InvalidTraining: when these are not the logits of all tokens of this batch.
        """
        ids_BT = self.inputs["input_ids"]
        if logits_BTV.shape[:2] != ids_BT.shape:
            raise InvalidTraining(
                f"the logits are of shape {tuple(logits_BTV.shape)}, the batch of {tuple(ids_BT.shape)}; give those of "
                "every token of the mixed batch"
            )
        if self.is_flat:
            losses = flat_losses(logits_BTV, self.rehearsed)
            if self.distillation is None or not self.num_rehearsed:
                return losses
            return distilled_losses(losses, flat_logits(logits_BTV, self.rehearsed), self.rehearsed, self.distillation)
        alone = rows_for_report(self.rehearsed).to(logits_BTV.device)
        logits_RTV = logits_BTV[len(ids_BT) - self.num_rehearsed :, : self.rehearsed.input_ids.shape[1]]
        losses = token_losses(logits_RTV, alone.input_ids_BT, alone.length_B)
        return distilled_losses(losses, logits_RTV, self.rehearsed, self.distillation)

    def loss_rows(self, losses: Losses, rank: int) -> np.ndarray:
        """The report of the rehearsed rows; see `replay_trainer.batches.mixing`."""
        return reported(self.rehearsed, losses, rank)


def distilled_losses(
    losses: TokenLosses, logits_RTV: Tensor, rehearsed: Batch, distillation: Distillation | None
) -> TokenLosses:
    """Losses of rehearsed rows, with what they learn from the base model."""
    if distillation is None or not len(rehearsed):
        return losses
    alone = {name: each.to(logits_RTV.device) for name, each in inputs_of(rehearsed).items()}
    del alone["labels"]
    return distillation.measured(losses, rehearsed, logits_RTV, alone)


def reported(rehearsed: Batch, losses: Losses, rank: int) -> np.ndarray:
    """The report of rehearsed rows, LOSS_ROW [R]; raises InvalidTraining when the losses are of labels."""
    if not isinstance(losses, TokenLosses):
        raise InvalidTraining("these are losses of labels; give those that this batch's `losses` gives")
    return loss_rows(rows_for_report(rehearsed), losses, rehearsed.only_step.step, rank)


def rows_for_report(rehearsed: Batch) -> MixedBatch:
    """The rehearsed rows alone."""
    ids_RT = torch.from_numpy(rehearsed.input_ids.astype("int64"))
    return MixedBatch(ids_RT, torch.from_numpy(rehearsed.length.astype("int64")), rehearsed)


def add_rows(
    inputs: Mapping[str, Any],
    rehearsed: Batch,
    rehearsal_weight: float = 1.0,
    distillation: Distillation | None = None,
) -> MixedInputs:
    """A loader's batch with rehearsed rows at its end, padded on the right to the wider of the two.

    Args:
        inputs: `input_ids` and `labels`, and `attention_mask` if any row is padded; int64 [rows, tokens]. Or a flat
            batch, see `replay_trainer.batches.padding_free`, whose rehearsed rows are not padded either.
        rehearsed: rows of one step.
        rehearsal_weight: see `Added`.
        distillation: see `Added`.

    Raises:
        InvalidTraining: when the batch holds something else, of which rehearsed rows know nothing.
    """
    check_learned(inputs, rehearsed)
    if is_padding_free(inputs):
        return MixedInputs(add_flat_rows(inputs, rehearsed), rehearsed, rehearsal_weight, distillation)
    _check_padded(inputs)
    if not len(rehearsed):
        return MixedInputs(dict(inputs), rehearsed, rehearsal_weight, distillation)
    ids_BT = inputs["input_ids"]
    ours = {"attention_mask": torch.ones_like(ids_BT), **inputs}
    width = max(ids_BT.shape[1], rehearsed.input_ids.shape[1])
    theirs = inputs_of(rehearsed)
    mixed = {
        name: torch.cat([_widened(ours[name], width, filling), _widened(theirs[name].to(ours[name]), width, filling)])
        for name, filling in _FILLING.items()
    }
    return MixedInputs(mixed, rehearsed, rehearsal_weight, distillation)


def check_learned(inputs: Mapping[str, Any], rehearsed: Batch) -> None:
    """Raises InvalidTraining when a batch has no labels of tokens."""
    if "labels" in inputs and inputs["labels"].ndim == 1:
        raise InvalidTraining(
            f"the batch has one label a row, but corpus {rehearsed.header.corpus!r} is of language; rehearse from a "
            "corpus that was ingested with --kind classification"
        )
    missing = {"input_ids", "labels"} - inputs.keys()
    if missing:
        raise InvalidTraining(
            f"the batch has no {' and no '.join(sorted(missing))}; the labels of a language model are its input_ids, "
            f"with {IGNORED} where nothing is to be learned"
        )


def _check_padded(inputs: Mapping[str, Tensor]) -> None:
    unknown = inputs.keys() - _FILLING.keys()
    if unknown:
        raise InvalidTraining(
            f"the batch has {', '.join(sorted(unknown))}, of which rehearsed rows know nothing; leave out all "
            f"but {', '.join(_FILLING)}"
        )
    shapes = {name: tuple(each.shape) for name, each in inputs.items()}
    if inputs["input_ids"].ndim != 2 or len(set(shapes.values())) != 1:
        raise InvalidTraining(f"what a batch holds must be of one shape, rows and tokens, not {shapes}")


def inputs_of(rehearsed: Batch) -> dict[str, Tensor]:
    """What a model is called with for rehearsed rows, and their labels: int64 [R, T]."""
    ids_RT = torch.from_numpy(rehearsed.input_ids.astype("int64"))
    length_R1 = torch.from_numpy(rehearsed.length.astype("int64"))[:, None]
    position_T = torch.arange(ids_RT.shape[1])
    is_real_RT = position_T < length_R1
    return {
        "input_ids": ids_RT.masked_fill(~is_real_RT, 0),
        # A row that sees no token at all is NaN in some kinds of attention, and so are gradients then.
        "attention_mask": (position_T < length_R1.clamp(min=1)).long(),
        "labels": ids_RT.masked_fill(~is_real_RT, IGNORED),
    }


def _widened(rows_BT: Tensor, width: int, filling: int) -> Tensor:
    return pad(rows_BT, (0, width - rows_BT.shape[1]), value=filling)
