"""Batches of a loader: whether rehearsed rows can be mixed into them, and the mixing for either kind of corpus."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from replay_service.wire.batches import Batch
from replay_trainer.batches.added import Added
from replay_trainer.batches.apart import ApartInputs
from replay_trainer.batches.distilled import Distillation
from replay_trainer.batches.rows import add_rows, check_learned
from replay_trainer.batches.samples import Prepare, add_samples
from replay_trainer.errors import InvalidTraining


def add(
    inputs: Mapping[str, Any],
    rehearsed: Batch,
    rehearsal_weight: float = 1.0,
    prepare: Prepare | None = None,
    distillation: Distillation | None = None,
    *,
    apart: bool = False,
) -> Added:
    """A loader's batch with rehearsed rows at its end: `add_rows`, or `add_samples` from a corpus to classify.

    With `apart`, rows of tokens stay beside the batch (`ApartInputs`).

    Raises:
        InvalidTraining: as they do.
    """
    if rehearsed.header.kind == "classification":
        return add_samples(inputs, rehearsed, rehearsal_weight, prepare, distillation)
    if apart:
        check_learned(inputs, rehearsed)
        return ApartInputs(dict(inputs), rehearsed, rehearsal_weight, distillation)
    return add_rows(inputs, rehearsed, rehearsal_weight, distillation)


def check_named(inputs: Any) -> None:
    """Raises InvalidTraining when a loader's batch is no mapping of names to tensors, or is mixed already."""
    parts = [*inputs.values()] if isinstance(inputs, Mapping) else inputs if isinstance(inputs, list) else [inputs]
    if any(isinstance(each, Added) for each in parts):
        raise InvalidTraining(
            "the batch is mixed already; mix each of the loader's batches once, and give the steps of a "
            "RehearsalDataset to take"
        )
    if not isinstance(inputs, Mapping):
        raise InvalidTraining(
            f"the batch is a {type(inputs).__name__}, not a mapping of names to tensors; give mix what the model is "
            'called with, and labels, such as {"input_ids": ids, "labels": labels}'
        )
    labels = inputs.get("labels")
    if labels is not None and not isinstance(labels, Tensor):
        raise InvalidTraining(
            f"the batch's labels are a {type(labels).__name__}, not a tensor; let the loader's collate_fn make tensors"
        )
