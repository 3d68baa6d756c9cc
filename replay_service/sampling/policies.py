"""Policies: how the probabilities of the strata follow from their sizes and damage rates."""

from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.permutation import keys

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

PolicyName = Literal["uniform", "stratified", "mix_cd", "permuted_mix_cd"]

_PERMUTE_RATES: Final = 5


class Policy(Protocol):
    """Takes sizes int64 [num_strata] and damage rates float64 [num_strata]; gives probabilities that sum to one."""

    def probabilities(self, sizes: Int64Array, rates: Float64Array) -> Float64Array: ...


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every sample of the corpus is equally likely."""

    def probabilities(self, sizes: Int64Array, rates: Float64Array) -> Float64Array:
        return _shares(sizes.astype(np.float64))


@dataclass(frozen=True, slots=True)
class Stratified:
    """Every stratum that holds a sample is equally likely, whatever its size. Nothing is learned."""

    def probabilities(self, sizes: Int64Array, rates: Float64Array) -> Float64Array:
        return _shares((sizes > 0).astype(np.float64))


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


@dataclass(frozen=True, slots=True)
class PermutedMixCd:
    """`MixCd` with the damage rates permuted among the strata by a seed: a control, which is this project's choice.

    It draws as unevenly as MixCd does and ignores which stratum is damaged. So what MixCd gains over it is due to the
    rates.
    """

    mix_cd: MixCd
    seed: int

    def probabilities(self, sizes: Int64Array, rates: Float64Array) -> Float64Array:
        order = keys(self.seed, _PERMUTE_RATES, np.arange(len(rates))).argsort(kind="stable")
        return self.mix_cd.probabilities(sizes, rates[order])


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
