"""Simulated runs that forget by the model of the predicted gain, with spread and elasticity known."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.predicted_gain import Draws, PredictedGain, predict_gain
from replay_service.sampling.run_state import RunState
from tests.sampling.forgetting_worlds import World, simulate

Float64Array = NDArray[np.float64]

LEVEL_NATS: Final = 0.5
"""What the corpus forgets under uniform draws at the first ratio, after the growth of the first steps."""
_GROWTH_STEPS: Final = 60.0


def levels(spread: float, of_stratum: float = 0.1) -> Callable[[np.random.Generator, int, int, int], Float64Array]:
    """What strata lose under uniform draws: lognormal over the domains, and less so over the strata of a domain.

    Args:
        spread: standard deviation of the logarithm over the domains; 0: all strata lose the same.
        of_stratum: the same within a domain.
    """

    def of_steps(random: np.random.Generator, steps: int, domains: int, quantiles: int) -> Float64Array:
        apart = spread * random.standard_normal((domains, 1))
        apart = apart + (of_stratum if spread else 0.0) * random.standard_normal((domains, quantiles))
        lost = np.exp(apart).ravel()
        grown = 1.0 - np.exp(-np.arange(1, steps + 1) / _GROWTH_STEPS)
        return LEVEL_NATS * np.outer(grown, lost / lost.mean())

    return of_steps


def spread_of(sizes: Float64Array, lost: Float64Array) -> float:
    """The standard deviation of the logarithm, of a lognormal with the relative variance of `lost` over the corpus."""
    share = sizes / sizes.sum()
    mean = share @ lost
    return math.sqrt(math.log1p(float(share @ (lost - mean) ** 2 / mean**2)))


def prediction_of(state: RunState) -> PredictedGain:
    visits = state.first_visits()
    return predict_gain(visits, visits.of_corpus(), Draws.of(state))


@dataclass(slots=True)
class Compared:
    """Predictions beside what a run that drew by damage had over one that drew uniformly."""

    num_asked: int = 0
    held: list[bool] = field(default_factory=list)
    """Whether the interval of the spread held the truth."""
    spreads: list[tuple[float, float, float]] = field(default_factory=list)
    """Of each: the truth, the estimate, half the interval."""
    means: list[tuple[float, float]] = field(default_factory=list)
    """The share by which mean forgetting falls: predicted, simulated."""
    worsts: list[tuple[float, float]] = field(default_factory=list)
    """The share by which ln(worst / mean) of the domains falls: predicted, simulated."""
    saved: list[tuple[float, float, float]] = field(default_factory=list)
    """Share of the rows saved: estimate, low, high."""
    advice: list[str] = field(default_factory=list)

    def add(self, found: PredictedGain, truth: float, mean: float, worst: float) -> None:
        self.num_asked += 1
        if found.spread is None:
            return
        assert found.mean_reduction and found.worst_reduction and found.rows_saved and found.advice
        self.held.append(found.spread.low <= truth <= found.spread.high)
        self.spreads.append((truth, found.spread.value, (found.spread.high - found.spread.low) / 2))
        self.means.append((found.mean_reduction.value, mean))
        self.worsts.append((found.worst_reduction.value, worst))
        self.saved.append(found.rows_saved)
        self.advice.append(found.advice)

    def agree(self, pairs: list[tuple[float, float]]) -> float:
        """The share of the runs in which prediction and simulation have the same sign."""
        return float(np.mean([(predicted > 0) == (simulated > 0) for predicted, simulated in pairs]))


def compared(world: World, seeds: Iterable[int]) -> Compared:
    """Runs of a world that draw by damage, checked against runs of the same seeds that draw uniformly."""
    found, uniform = Compared(), replace(world, config={**world.config, "policy": "uniform"})
    for seed in seeds:
        others = [check.truth for check in simulate(uniform, seed)]
        for check, other in zip(simulate(world, seed), others, strict=True):
            sizes = check.state.cursors.sizes.astype(np.float64)
            (mean, worst), (of_other, worst_of_other) = (
                _mean_and_worst(sizes, lost, world) for lost in (check.truth, other)
            )
            truth = spread_of(sizes, check.at_uniform)
            found.add(prediction_of(check.state), truth, 1.0 - mean / of_other, 1.0 - worst / worst_of_other)
    return found


def _mean_and_worst(sizes: Float64Array, lost: Float64Array, world: World) -> tuple[float, float]:
    """Mean forgetting, and ln(worst / mean) over the domains."""
    of_domain, share = (each.reshape(world.num_domains, -1).sum(axis=1) for each in (sizes * lost, sizes))
    mean = float(of_domain.sum() / share.sum())
    return mean, math.log(float((of_domain / share).max()) / mean)


def _noisy(scale: float) -> Callable[[np.random.Generator, int], Float64Array]:
    return lambda random, n: scale * random.standard_normal(n)


def gain_world(name: str, spread: float, ratio: str = "0.2", **changes: object) -> World:
    """Twelve domains of four strata; 64 rows a step, and a half-life of 100 steps."""
    config = {"injection_ratio": ratio, "signal": "excess_loss", **changes.pop("config", {})}  # type: ignore[dict-item]
    settings: dict[str, object] = {
        "num_domains": 12,
        "rows": (40_000, 90_000),
        "checks": (399,),
        "elasticity": 0.33,
        "config": config,
        **changes,
    }
    return World(name, levels(spread), **settings)  # type: ignore[arg-type]


EVEN: Final = gain_world("even damage", 0.0)
SPREAD: Final = gain_world("spread 0.4", 0.4)
GAIN_WORLDS: Final = (
    EVEN,
    gain_world("even damage, 3 rows a step", 0.0, "0.05"),
    gain_world("spread 0.1", 0.1),
    gain_world("spread 0.2", 0.2),
    SPREAD,
    gain_world("spread 0.4, 3 rows a step", 0.4, "0.05"),
    gain_world("spread 0.4, 12 half-lives", 0.4, num_steps=1200, checks=(1199,)),
    gain_world("spread 0.4, one half-life", 0.4, num_steps=104, checks=(103,)),
    gain_world("spread 0.7", 0.7),
    gain_world("spread 1", 1.0),
    gain_world("elasticity 0.26", 0.4, elasticity=0.26),
    gain_world("elasticity 0.41", 0.4, elasticity=0.41),
    gain_world("sharpness 2", 0.4, config={"sharpness": 2.0}),
    gain_world("sharpness 4", 0.4, config={"sharpness": 4.0}),
    gain_world("signal token_flip", 0.4, config={"signal": "token_flip"}),
    gain_world("samples differ by 1 nat", 0.4, noise=_noisy(1.0)),
    gain_world("400 strata", 0.4, num_domains=50, num_quantiles=8),
    gain_world("400 strata, even damage", 0.0, num_domains=50, num_quantiles=8),
    gain_world("the ratio falls to a fourth", 0.4, changes=((200, {"injection_ratio": "0.05"}),)),
)
