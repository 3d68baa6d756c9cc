"""Rehearsed samples to classify, added to a loader's batch, and what is reported of them.

Shapes: B samples, the last R of them rehearsed, T tokens of a text, C classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from replay_service.classification.losses import ClassLosses, class_losses
from replay_service.classification.scoring import model_inputs
from replay_service.wire.batches import Batch
from replay_service.wire.losses import LOSS_ROW
from replay_trainer.batches.added import IGNORED, Added, Losses
from replay_trainer.batches.distilled import Distillation
from replay_trainer.batches.mixing import unmeasured_where_beyond
from replay_trainer.errors import InvalidTraining

Prepare = Callable[[Tensor], Tensor]
"""Makes of a corpus's inputs, [R, ...] as they are stored, what the loader gives."""


@dataclass(frozen=True, slots=True)
class MixedSamples(Added):
    """A batch of a loader, samples and labels, with rehearsed samples at its end.

    A sample that the service could not read has the label -100, and does not count.
    """

    @property
    def target_labels(self) -> Tensor:
        """int64 [B - R]."""
        labels: Tensor = self.inputs["labels"]
        return labels[: self.num_target_rows]

    @property
    def num_target_rows(self) -> int:
        return len(self.inputs["labels"]) - self.num_rehearsed

    @property
    def num_predictions(self) -> Tensor:
        """int64 scalar: labels that count, of all samples."""
        counted: Tensor = (self.inputs["labels"] != IGNORED).sum()
        return counted

    def losses(self, logits_BC: Tensor) -> ClassLosses:
        """Losses of the rehearsed samples alone, [R]; differentiable.

        Raises:
            InvalidTraining: when these are not the logits of this batch, or lack a class that is rehearsed or that
                the base model knows.
        """
        label_B = self.inputs["labels"]
        if logits_BC.ndim != 2 or len(logits_BC) != len(label_B):
            raise InvalidTraining(
                f"the logits are of shape {tuple(logits_BC.shape)}, and the batch has {len(label_B)} samples; give "
                "those of every sample of the mixed batch, one number a class"
            )
        label = self.rehearsed.label
        if label is not None and len(label) and int(label.max()) >= logits_BC.shape[1]:
            raise InvalidTraining(
                f"the model has {logits_BC.shape[1]} classes, and a rehearsed sample is of class {int(label.max())}; "
                "keep the classes of the base model, and put new ones after them"
            )
        first = len(label_B) - self.num_rehearsed
        losses = class_losses(logits_BC[first:], label_B[first:].to(logits_BC.device))
        if self.distillation is None or not self.num_rehearsed:
            return losses
        alone = {name: each[first:].to(logits_BC.device) for name, each in self.inputs.items() if name != "labels"}
        return self.distillation.measured_samples(losses, logits_BC[first:], alone)

    def share_in(self, loss: Tensor, logits_BC: Tensor) -> Tensor:
        """Factor of a sample's nats in a loss that weighs all alike: whether a model takes the mean of
        its samples, or divides by what a trainer tells it, shows in the loss alone."""
        with torch.no_grad():
            total = class_losses(logits_BC, self.inputs["labels"].to(logits_BC.device)).nll_B.sum()
            return loss / total.clamp(min=torch.finfo(total.dtype).tiny)

    def loss_rows(self, losses: Losses, rank: int) -> np.ndarray:
        """The report of the rehearsed samples: LOSS_ROW [R]; not measured where a loss is not finite.

        A sample is one prediction, and it flips when the base model's argmax was the label and the model's is not:
        collateral damage as mix-cd defines it (Bai et al., Findings of NAACL 2025).
        """
        if not isinstance(losses, ClassLosses):
            raise InvalidTraining("these are losses of tokens; give those that this batch's `losses` gives")
        mask_R, correct_R = losses.mask_B.cpu().numpy(), losses.correct_B.cpu().numpy()
        was_right_R = (self.rehearsed.base_correct[:, 0] & 1).astype(bool)
        rows = np.empty(self.num_rehearsed, dtype=LOSS_ROW)
        rows["step"] = self.rehearsed.step
        rows["rank"] = rank
        rows["attempt"] = self.rehearsed.header.attempt
        rows["sample_id"] = self.rehearsed.sample_id
        rows["loss_nats"] = losses.nll_B.detach().cpu().numpy()
        rows["num_tokens"] = mask_R
        rows["num_flips"] = was_right_R & ~correct_R & mask_R
        rows["num_gains"] = ~was_right_R & correct_R & mask_R
        return unmeasured_where_beyond(rows)


def add_samples(
    inputs: Mapping[str, Tensor],
    rehearsed: Batch,
    rehearsal_weight: float = 1.0,
    prepare: Prepare | None = None,
    distillation: Distillation | None = None,
) -> MixedSamples:
    """A loader's batch with rehearsed samples at its end.

    Args:
        inputs: `labels`, int64 [rows], and one tensor [rows, ...] under any name, such as `pixel_values`; or of texts
            `input_ids`, and `attention_mask` if any is padded, int64 [rows, tokens].
        rehearsed: samples of one step.
        rehearsal_weight: see `Added`.
        prepare: for tensors; by default the corpus stores what the loader gives.
        distillation: see `Added`; its teacher must be a model.

    Raises:
        InvalidTraining: when the batch holds something else, or what is rehearsed is of another type or shape.
    """
    is_text = rehearsed.inputs is None
    name = _input_name(inputs, rehearsed, is_text)
    if not len(rehearsed):
        return MixedSamples(dict(inputs), rehearsed, rehearsal_weight, distillation)
    labels = torch.cat([inputs["labels"], _labels(rehearsed).to(inputs["labels"])])
    mixed = _with_texts(inputs, rehearsed) if is_text else {name: _with_tensors(inputs[name], rehearsed, prepare)}
    return MixedSamples({**mixed, "labels": labels}, rehearsed, rehearsal_weight, distillation)


def _labels(rehearsed: Batch) -> Tensor:
    assert rehearsed.label is not None
    return torch.from_numpy(np.where(rehearsed.length > 0, rehearsed.label, IGNORED).astype(np.int64))


def try_tensors(inputs: Mapping[str, Tensor], rehearsed: Batch, prepare: Prepare | None) -> None:
    """Try with one sample of zeros whether samples of a corpus can join a loader's batch, before any is rehearsed.

    Raises:
        InvalidTraining: when they are of another type or shape; nothing is tried of texts.
    """
    if rehearsed.inputs is None:
        return
    zeros = np.zeros((1, *rehearsed.inputs.shape[1:]), rehearsed.inputs.dtype)
    _prepared(inputs[_input_name(inputs, rehearsed, is_text=False)], zeros, prepare)


def _with_tensors(ours: Tensor, rehearsed: Batch, prepare: Prepare | None) -> Tensor:
    assert rehearsed.inputs is not None
    return torch.cat([ours, _prepared(ours, rehearsed.inputs.copy(), prepare).to(ours.device)])


def _prepared(ours: Tensor, stored: NDArray[Any], prepare: Prepare | None) -> Tensor:
    """Stored samples as the loader gives its own, which are `ours`."""
    theirs = torch.from_numpy(stored)
    if prepare is not None:
        theirs = prepare(theirs)
    if (theirs.shape[1:], theirs.dtype) != (ours.shape[1:], ours.dtype):
        raise InvalidTraining(
            f"the loader gives {ours.dtype} {list(ours.shape[1:])} a sample, and rehearsed samples are {theirs.dtype} "
            f"{list(theirs.shape[1:])}; give Rehearsal a `prepare` that makes the one of the other"
        )
    return theirs


def _with_texts(inputs: Mapping[str, Tensor], rehearsed: Batch) -> dict[str, Tensor]:
    """Both padded on the right to the wider of the two."""
    ours = {"input_ids": inputs["input_ids"], "attention_mask": torch.ones_like(inputs["input_ids"]), **inputs}
    # A text that sees no token at all is NaN in some kinds of attention, and so are gradients then.
    theirs = model_inputs(rehearsed.input_ids, rehearsed.length.clip(min=1))
    width = max(ours["input_ids"].shape[1], theirs["input_ids"].shape[1])
    return {
        name: torch.cat([_widened(ours[name], width), _widened(theirs[name].to(ours[name]), width)])
        for name in ("input_ids", "attention_mask")
    }


def _widened(rows_BT: Tensor, width: int) -> Tensor:
    return pad(rows_BT, (0, width - rows_BT.shape[1]))


def _input_name(inputs: Mapping[str, Tensor], rehearsed: Batch, is_text: bool) -> str:
    """Under which name what is classified stands; checks all of the batch."""
    corpus = f"corpus {rehearsed.header.corpus!r} holds {'texts' if is_text else 'tensors'} to classify"
    names = [name for name in inputs if name != "labels"]
    known = {"input_ids", "attention_mask"} if is_text else set(names[:1])
    if "labels" not in inputs or not names or set(names) - known or (is_text and "input_ids" not in names):
        wanted = "input_ids, perhaps attention_mask," if is_text else "one tensor"
        raise InvalidTraining(f"{corpus}: a batch must hold {wanted} and labels, not {', '.join(inputs) or 'nothing'}")
    labels, rows = inputs["labels"], inputs[names[0]]
    if labels.shape != rows.shape[:1] or labels.is_floating_point():
        raise InvalidTraining(
            f"{corpus}: labels must be one class a row, int64 [{len(rows)}], not {labels.dtype} {list(labels.shape)}"
        )
    shapes = {name: tuple(inputs[name].shape) for name in names}
    if is_text and (rows.ndim != 2 or len(set(shapes.values())) != 1):
        raise InvalidTraining(f"{corpus}: what a batch holds of its texts must be of one shape, not {shapes}")
    return names[0]
