"""Collateral damage: what one report says of it, and the rate of each stratum.

mix-cd (Bai et al., "An Efficient Rehearsal Scheme for Catastrophic Forgetting Mitigation during Multi-stage
Fine-tuning", 2024): collateral damage is what the base model got right and the tuned model gets wrong; its rate is
estimated per bin from the rehearsal samples that were trained on anyway.
"""

from collections.abc import Callable
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]

Signal = Literal["token_flip", "net_flip", "excess_loss", "threshold"]
SIGNALS: tuple[str, ...] = get_args(Signal)


def token_flip(rows: np.ndarray, _learnable: float, _delta: float) -> Float64Array:
    """The share of a sample's tokens that the base model's argmax got right and the tuned model's gets wrong."""
    share: Float64Array = rows["num_flips"] / rows["num_tokens"]
    return share


def net_flip(rows: np.ndarray, _learnable: float, _delta: float) -> Float64Array:
    """max(0, flips - gains) / tokens: gains are tokens that the base model got wrong and the tuned one gets right.

    A sample that was traded for as much as it lost counts as undamaged. This signal is this project's choice.
    """
    share: Float64Array = np.maximum(0, rows["num_flips"] - np.maximum(0, rows["num_gains"])) / rows["num_tokens"]
    return share


def excess_loss(rows: np.ndarray, _learnable: float, _delta: float) -> Float64Array:
    """max(0, loss - base loss), nats per token."""
    excess: Float64Array = np.maximum(0.0, rows["loss_nats"] - rows["base_loss_nats"])
    return excess


def threshold(rows: np.ndarray, learnable: float, delta: float) -> Float64Array:
    """1 where the base model had learned the sample (base loss <= learnable) and it got worse by more than delta."""
    learned = rows["base_loss_nats"] <= learnable
    worse = rows["loss_nats"] - rows["base_loss_nats"] > delta
    damaged: Float64Array = (learned & worse).astype(np.float64)
    return damaged


DAMAGE_OF: dict[str, Callable[[np.ndarray, float, float], Float64Array]] = {
    "token_flip": token_flip,
    "net_flip": net_flip,
    "excess_loss": excess_loss,
    "threshold": threshold,
}


LEAST_DAMAGE: Final = 1e-100
"""What some 330 half-lives leave of one damaged sample; of less, products of rates would underflow to 0 / 0."""


def damage_rates(damage: Float64Array, count: Float64Array, prior_weight: float) -> Float64Array:
    """The damage rate alpha of each stratum, float64 [num_groups, num_quantiles], by partial pooling.

    Args:
        damage: float64 [num_groups, num_quantiles], summed damage of the reported samples.
        count: float64 [num_groups, num_quantiles], how many samples that is (decayed, so not whole).
        prior_weight: how many reported samples the prior is worth (m in the formula).

    alpha = (m * a0 + C) / (m + n), where a0 = group rate * quantile rate / global rate, and the rates of groups and
    quantiles are themselves shrunk to the global rate in the same way. With no damage reported all rates are equal.
    The pooling is this project's choice; the paper leaves the estimator open.
    """
    if damage.sum() <= LEAST_DAMAGE:
        return np.ones_like(damage)
    overall = damage.sum() / count.sum()
    group = _shrunk(damage.sum(axis=1), count.sum(axis=1), overall, prior_weight)
    quantile = _shrunk(damage.sum(axis=0), count.sum(axis=0), overall, prior_weight)
    return _shrunk(damage, count, np.outer(group, quantile) / overall, prior_weight)


def _shrunk(damage: Float64Array, count: Float64Array, prior: Float64Array | float, weight: float) -> Float64Array:
    return (weight * prior + damage) / (weight + count)
