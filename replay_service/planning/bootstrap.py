"""Intervals of what is derived from a fit, by a bootstrap over the runs.

Shapes: R runs, B resamples, K coefficients. Index 0 of B + 1 is the fit itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from replay_service.planning.identified import Levels
from replay_service.planning.laws import ForgettingRuns, TargetRuns, fit
from replay_service.planning.runs import Float64Array, Runs

LEVEL: Final = 0.95

LawRuns = TypeVar("LawRuns", ForgettingRuns, TargetRuns)


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its 95 % interval; NaN where nothing can be said."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, draws: Float64Array) -> "Interval":
        """Percentiles of draws [B + 1], of which the first is the estimate. An infinite draw is beyond all others."""
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(draws[1:], [tail, 1 - tail], method="nearest")
        return cls(float(draws[0]), min(float(low), float(draws[0])), max(float(high), float(draws[0])))


def resamples(runs: Runs, num: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Indexes of runs, [R] each, drawn with replacement.

    A resample that tells fewer than two ratios, sizes or lengths apart where the runs do is drawn again.
    """
    rng, wanted = np.random.default_rng(seed), _told(runs)
    while num:
        index = rng.integers(0, len(runs), len(runs))
        if np.all(_told(runs.take(index)) >= wanted):
            num -= 1
            yield index


def _told(runs: Runs) -> NDArray[np.int64]:
    levels = Levels.of(runs)
    return np.minimum([levels.num_ratios, levels.num_sizes, levels.num_lengths], 2)


def draws_of(law: LawRuns, indexes: list[NDArray[np.int64]], progress: Callable[[], None]) -> Float64Array:
    """Coefficients of the fit and of resamples, float64 [B + 1, K].

    Their deviations from the fit are stretched twice, since few runs make bootstraps too narrow: by
    sqrt(R / (R - K)) for the residuals (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, 7.3), and by
    the ratio of Student's quantile to the normal one.
    """
    known = fit(law)
    found = [known]
    for index in indexes:
        found.append(fit(replace(law, runs=law.runs.take(index)), known))
        progress()
    draws = known + _stretch(len(law.runs), sum(law.free)) * (np.array(found) - known)
    return np.clip(draws, np.minimum(law.lower(), known), np.maximum(law.upper(), known))


def _stretch(num_runs: int, num_coefficients: int) -> float:
    degrees = num_runs - num_coefficients
    quantile = (1 + LEVEL) / 2
    student = stats.t.ppf(quantile, degrees) / stats.norm.ppf(quantile)
    return float(student * np.sqrt(num_runs / degrees))
