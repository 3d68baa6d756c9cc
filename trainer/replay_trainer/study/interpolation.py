"""Interpolation of a tuned model's weights with the base model's, after training.

WiSE-FT: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022:

    theta = (1 - s) theta_base + s theta_tuned

with s the share of the tuned weights. It trains nothing and needs no pretraining text.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from replay_service.errors import ReplayError
from replay_service.language.model import best_device, load_model
from replay_service.language.precision import Precision
from replay_service.language.tokenizer import load_tokenizer
from replay_trainer.config import DataConfig
from replay_trainer.errors import InvalidTraining
from replay_trainer.job.evaluation import TARGET
from replay_trainer.job.feed import load_heldout
from replay_trainer.study.measuring import score


@dataclass(frozen=True, slots=True)
class Interpolated:
    """What weights of one share lose on held-out text, nats per token.

    Attributes:
        tuned_share: in [0, 1]; 0 is the base model, 1 the tuned one.
        target_loss: None where no held-out text of the target was named.
        forgetting: by domain.
    """

    tuned_share: float
    target_loss: float | None
    forgetting: dict[str, float]

    @property
    def mean_forgetting(self) -> float:
        """The mean over the domains."""
        return float(np.mean(list(self.forgetting.values())))


def interpolated_state(
    base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], tuned_share: float
) -> dict[str, Tensor]:
    """The weights between two models; what is no number with a fraction is taken from the tuned one.

    Raises:
        InvalidTraining: when the two are not models of one shape.
    """
    shapes = [{name: tuple(each.shape) for name, each in state.items()} for state in (base, tuned)]
    if shapes[0] != shapes[1]:
        differ = sorted(
            name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name)
        )
        raise InvalidTraining(
            f"the two models do not have the same weights; {differ[0]} is the first of {len(differ)} that differ; name "
            "the model that was tuned, and what it became"
        )
    return {
        name: base[name].lerp(each, tuned_share) if each.is_floating_point() else each for name, each in tuned.items()
    }


@dataclass(slots=True)
class Interpolation:
    """A base model and what it was tuned to.

    Raises:
        InvalidTraining: when one of them cannot be loaded, or they are not models of one shape.
    """

    base: str
    tuned: str
    precision: Precision

    def scored(self, data: DataConfig, shares: list[float], most_rows: int) -> Iterator[Interpolated]:
        """Held-out text scored at each share, in their order.

        Raises:
            InvalidTraining: when the held-out text cannot be read or names no pretraining domain.
        """
        tokenizer = load_tokenizer(self.base)
        heldout = load_heldout(data, tokenizer)
        rows = {
            name: each.take(np.arange(min(len(each), most_rows))) for name, each in heldout.rows.items() if len(each)
        }
        model, base, tuned = self._models()
        device = best_device()

        def losses() -> dict[str, float]:
            scores = {name: score(model, each, self.precision, device) for name, each in rows.items()}
            return {name: float(each.nats.sum() / max(1, each.num_tokens.sum())) for name, each in scores.items()}

        model.load_state_dict(base)
        before = losses()
        for share in shares:
            model.load_state_dict(interpolated_state(base, tuned, share))
            after = losses()
            forgetting = {name: after[name] - before[name] for name in after if name != TARGET}
            yield Interpolated(share, after.get(TARGET), forgetting)

    def save(self, tuned_share: float, folder: Path) -> None:
        """Write the weights of one share, and the tokenizer, for the library transformers."""
        model, base, tuned = self._models()
        model.load_state_dict(interpolated_state(base, tuned, tuned_share))
        model.save_pretrained(folder)
        load_tokenizer(self.base).save_pretrained(folder)

    def _models(self) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """A model to put weights into, and those of the two."""
        try:
            base, model = load_model(self.base), load_model(self.tuned)
        except ReplayError as error:
            raise InvalidTraining(error.detail) from error
        device = best_device()
        model = model.to(device)
        weights = base.to(device).state_dict()
        tuned = {name: each.clone() for name, each in model.state_dict().items()}
        interpolated_state(weights, tuned, 0.5)
        return model, weights, tuned


def best_within(found: list[Interpolated], budget_nats: float) -> Interpolated | None:
    """The one of the least target loss among those that forget at most the budget; None where all forget more.

    Without a target loss it is the one with the greatest share of tuned weights.
    """
    within = [each for each in found if each.mean_forgetting <= budget_nats]
    if not within:
        return None
    return min(within, key=lambda each: -each.tuned_share if each.target_loss is None else each.target_loss)
