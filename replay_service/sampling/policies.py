"""Policies: how the probabilities of the strata follow from their sizes and damage rates."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

PolicyName = Literal["uniform", "mix_cd"]


class Policy(Protocol):
    """Takes sizes int64 [num_strata] and damage rates float64 [num_strata]; gives probabilities that sum to one."""

    def probabilities(self, sizes: Int64Array, rates: Float64Array) -> Float64Array: ...


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every sample of the corpus is equally likely."""

    def probabilities(self, sizes: Int64Array, rates: Float64Array) -> Float64Array:
        return _shares(sizes.astype(np.float64))


@dataclass(frozen=True, slots=True)
class MixCd:
    """P(k) proportional to N_k * alpha_k ** sharpness, mixed with a share `floor` of the uniform policy.

    A sharpness of 1 draws a uniform sample of the estimated collateral damage, which is the paper's distribution;
    sharpness and floor are this project's choice.
    """

    sharpness: float
    floor: float

    def probabilities(self, sizes: Int64Array, rates: Float64Array) -> Float64Array:
        mass = sizes * (rates / rates.max()) ** self.sharpness
        return (1.0 - self.floor) * _shares(mass) + self.floor * _shares(sizes.astype(np.float64))


def _shares(mass: Float64Array) -> Float64Array:
    shares: Float64Array = mass / mass.sum()
    return shares


def systematic(probabilities: Float64Array, num_draws: Int64Array, offset: Float64Array) -> Int64Array:
    """Systematic resampling, once for each of m steps: the stratum of every draw, step by step, ascending in each.

    Args:
        probabilities: float64 [num_strata].
        num_draws: int64 [m], draws of each step.
        offset: float64 [m], in [0, 1).

    Returns:
        int64 [sum of num_draws].

    Of a step, draw i falls where (offset + i) / num_draws lies on the cumulated probabilities, so stratum k is drawn
    num_draws * P(k) times, rounded up or down (Kitagawa, "Monte Carlo filter and smoother", 1996). A stratum of
    probability zero is never drawn.
    """
    cumulated = probabilities.cumsum()
    step = np.arange(len(num_draws)).repeat(num_draws)
    draw = np.arange(len(step)) - (num_draws.cumsum() - num_draws)[step]
    points = (offset[step] + draw) / num_draws[step] * cumulated[-1]
    last = int(probabilities.nonzero()[0][-1])
    strata: Int64Array = np.minimum(cumulated.searchsorted(points, side="right"), last)
    return strata
