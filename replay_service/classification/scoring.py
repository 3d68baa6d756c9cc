"""Scoring labelled samples with the base model: the loss of each, and whether the model's argmax was the label.

Beside a loop that weighs its samples by FLOW:

    base_loss = ClassScorer(model, "float32", batch_size=64).score(inputs, label).base_loss

Shapes: n samples, B of one pass, T tokens of a text, C classes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from replay_service.classification.factory import is_factory
from replay_service.classification.losses import class_losses
from replay_service.classification.model import fingerprint, load_classifier, logits_of
from replay_service.errors import CorpusError
from replay_service.language.model import autocast, evaluating
from replay_service.language.precision import Precision
from replay_service.language.trial import check_takes


class ClassScores(NamedTuple):
    """Scores of n samples by the base model, in their order."""

    base_loss: NDArray[np.float32]
    """float32 [n], nats."""
    correct: NDArray[np.bool_]
    """bool [n]: no class is likelier than the label."""


class ClassScorer:
    """Scores samples with a model, which stays as it is and where it is.

    Args:
        model: see `replay_service.classification.model`.
        precision: the arithmetic of the forward pass; losses are float32 in either.
        batch_size: most samples of one forward pass.
    """

    def __init__(self, model: nn.Module, precision: Precision, *, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self._model = model
        self._device = next((each.device for each in model.parameters()), torch.device("cpu"))
        self._precision = precision
        self._batch_size = batch_size

    def score(
        self,
        inputs: NDArray[Any],
        label: NDArray[np.integer[Any]],
        length: NDArray[np.integer[Any]] | None = None,
    ) -> ClassScores:
        """Score any number of samples.

        Args:
            inputs: [n, ...] numbers of any type; with `length`, token ids [n, T].
            label: any integer type [n], classes that the model knows.
            length: any integer type [n], real tokens of each text, 1 at least.

        Raises:
            CorpusError: when the model gives no logits.
            ValueError: when a label is no class of the model.
        """
        scores = ClassScores(np.zeros(len(label), dtype=np.float32), np.zeros(len(label), dtype=np.bool_))
        with evaluating(self._model), torch.inference_mode(), autocast(self._precision, self._device):
            for first in range(0, len(label), self._batch_size):
                rows = slice(first, first + self._batch_size)
                batch = model_inputs(inputs[rows], None if length is None else length[rows])
                logits_BC = logits_of(self._model, {name: each.to(self._device) for name, each in batch.items()})
                _check(label[rows], logits_BC)
                losses = class_losses(logits_BC, torch.from_numpy(label[rows].astype(np.int64)).to(self._device))
                scores.base_loss[rows] = losses.nll_B.cpu().numpy()
                scores.correct[rows] = losses.correct_B.cpu().numpy()
        return scores


def model_inputs(inputs: NDArray[Any], length: NDArray[np.integer[Any]] | None) -> Mapping[str, Tensor]:
    """Stored samples as a model takes them; texts are as wide as the longest of them."""
    if length is None:
        return {"inputs": torch.from_numpy(inputs.astype(np.float32))}
    ids_BT = torch.from_numpy(inputs[:, : max(1, int(length.max(initial=0)))].astype(np.int64))
    position_T = torch.arange(ids_BT.shape[1])
    is_real_BT = position_T < torch.from_numpy(length.astype(np.int64))[:, None]
    return {"input_ids": ids_BT.masked_fill(~is_real_BT, 0), "attention_mask": is_real_BT.long()}


def described(name: str, shape: tuple[int, ...] | None, seq_len: int = 1) -> tuple[int, str]:
    """How many classes a model knows, and the fingerprint of its weights.

    Args:
        name: see `replay_service.classification.model`.
        shape: of a tensor that it classifies; None for text.
        seq_len: most tokens of a text.

    Raises:
        CorpusError: when there is no such model, or it does not take what it is to classify.
    """
    model = load_classifier(name, is_text=shape is None)
    try:
        with torch.inference_mode():
            num_classes = logits_of(model, _trial_inputs(shape)).shape[1]
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        what = "a text" if shape is None else f"a tensor of shape {list(shape)}"
        raise CorpusError(f"the model {name!r} does not classify {what}: {error}") from error
    if shape is None:
        with torch.inference_mode():
            check_takes(lambda length: logits_of(model, _trial_inputs(None, length)), seq_len)
    weights = fingerprint(model)
    if is_factory(name) and fingerprint(load_classifier(name, is_text=shape is None)) != weights:
        raise CorpusError(f"the factory {name!r} makes other weights each time; let it load them from a file")
    return num_classes, weights


def _trial_inputs(shape: tuple[int, ...] | None, length: int = 1) -> Mapping[str, Tensor]:
    """Zeros as the inputs of a tensor of this shape, or of a text of so many tokens."""
    if shape is None:
        return model_inputs(np.zeros((1, length), dtype=np.int64), np.array([length]))
    return model_inputs(np.zeros((1, *shape), dtype=np.float32), None)


def _check(label: NDArray[np.integer[Any]], logits_BC: Tensor) -> None:
    num_classes = logits_BC.shape[1]
    if len(label) and not (label.min() >= 0 and label.max() < num_classes):
        raise ValueError(f"labels must be classes of the model, 0 to {num_classes - 1}")
