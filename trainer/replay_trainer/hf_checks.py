"""Checks of a `transformers.Trainer`: whether rehearsed rows can join its batches and its loss."""

from typing import Any, Final

from replay_trainer.errors import InvalidTraining

_CROSS_ENTROPY: Final = (None, "nll", "chunked_nll")
"""The values of trl's `loss_type` that are cross-entropy; None where the arguments have no such field."""

_OF_PREFERENCES: Final = ("chosen", "rejected", "prompt_", "completion_ids", "KL_")
"""Beginnings of the column names that trainers of preferences and of policies have."""


def check_trainer(trainer: Any) -> None:
    """Refuse a Trainer in which rehearsed rows would be lost or count differently.

    Raises:
        InvalidTraining: when its batches are not rows with `labels`, its loss is not the model's cross-entropy, or
            devices share rows.
    """
    _check_batches(trainer)
    _check_label_names(trainer)
    _check_loss(trainer)
    _check_devices(trainer)


def _check_batches(trainer: Any) -> None:
    """Batches must be rows with labels. Those of preferences are pairs of answers; those of policies are prompts."""
    trainer._set_signature_columns_if_needed()
    columns = trainer._signature_columns or []
    found = [each for each in columns if each.startswith(_OF_PREFERENCES)]
    if not found and "prompt" in columns and "messages" not in columns:
        found = ["prompt"]
    if found:
        raise InvalidTraining(
            f"a {type(trainer).__name__} trains on {', '.join(found)}, not on rows with labels, which rehearsed rows "
            "are; rehearse in Trainer or trl's SFTTrainer, or in a loop of your own (replay_trainer.plain)"
        )


def _check_label_names(trainer: Any) -> None:
    names = trainer.args.label_names
    if names is not None and "labels" not in names:
        raise InvalidTraining(
            f"label_names is {names}, but rehearsed rows join a batch's `labels`; have the collator call them labels, "
            "and leave label_names out"
        )


def _check_loss(trainer: Any) -> None:
    what = None
    if trainer.compute_loss_func is not None:
        what = "compute_loss_func"
    elif trainer.args.label_smoothing_factor:
        what = "label_smoothing_factor"
    elif getattr(trainer.args, "loss_type", None) not in _CROSS_ENTROPY:
        what = f"loss_type {trainer.args.loss_type!r}"
    if what is not None:
        raise InvalidTraining(
            f"{what} is set, but rehearsed rows learn by the model's own cross-entropy, beside which it would count "
            "differently; leave it out"
        )


def _check_devices(trainer: Any) -> None:
    shared = trainer.get_tp_size() * trainer.get_cp_size() * trainer.get_sp_size()
    if shared > 1 or trainer.args.n_gpu > 1:
        raise InvalidTraining(
            "each process must have whole rows of its own, but here devices share them; start one process a device "
            "with torchrun or accelerate, without tensor, context or sequence parallelism"
        )
