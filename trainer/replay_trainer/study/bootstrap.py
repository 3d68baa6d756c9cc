"""Paired bootstrap over the seeds of each target, and Holm's correction.

Shapes: P pairs of a target and a seed, T targets, B resamples; index 0 of B + 1 is the sample itself.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]

NUM_RESAMPLES: Final = 4000
_LEVEL: Final = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its 95 % interval; NaN where nothing can be said."""

    value: float
    low: float
    high: float

    @property
    def is_known(self) -> bool:
        return bool(np.isfinite([self.value, self.low, self.high]).all())


def resamples(target_of_pair: NDArray[np.int64], num: int, seed: int = 0) -> Float64Array:
    """Weights of the pairs, float64 [B + 1, P]; those of each target sum to one. Row 0 weighs them alike.

    All arms share the weights, so that what a seed does to all of them cancels in their differences. Of the n seeds of
    a target n are drawn with replacement. The deviations from equal weights are stretched twice: by sqrt(n / (n - 1)),
    without which variances are too small by 1 / n (Rao and Wu, "Resampling inference with complex survey data", 1988),
    and by the ratio of Student's quantile to the normal one, since so few seeds tell little of the variance. So a
    weight may be below zero. Targets are not drawn: an interval is of these targets.
    """
    rng = np.random.default_rng(seed)
    weights: Float64Array = np.zeros((num + 1, len(target_of_pair)))
    stretch = _student(len(target_of_pair) - len(np.unique(target_of_pair)))
    for target in np.unique(target_of_pair):
        places = (target_of_pair == target).nonzero()[0]
        equal = np.full(len(places), 1.0 / len(places))
        deviations = rng.multinomial(len(places), equal, num) / len(places) - equal
        weights[:, places] = equal
        weights[1:, places] += stretch * np.sqrt(len(places) / max(1, len(places) - 1)) * deviations
    return weights


def _student(degrees: int) -> float:
    """Student's quantile over the normal one at 97.5 %, by the series of Cornish and Fisher; 1 where nothing varies."""
    if degrees < 1:
        return 1.0
    z = 1.959964
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return 1.0 + (first / degrees + second / degrees**2) / z


def has_intervals(target_of_pair: NDArray[np.int64]) -> bool:
    """Whether every target has two seeds: of one seed nobody knows how it varies."""
    return bool((np.bincount(target_of_pair) >= 2).all())


def by_target(weights: Float64Array, target_of_pair: NDArray[np.int64], values: NDArray[Any]) -> Float64Array:
    """Weighed means over the pairs of each target.

    Args:
        weights: [B + 1, P].
        target_of_pair: [P].
        values: float64 [P, ...].

    Returns:
        float64 [B + 1, T, ...].
    """
    targets = np.unique(target_of_pair)
    means = [
        np.tensordot(weights[:, target_of_pair == each], values[target_of_pair == each], axes=1) for each in targets
    ]
    stacked: Float64Array = np.stack(means, axis=1)
    return stacked


def interval(values: Float64Array, *, known: bool = True) -> Interval:
    """Of a statistic [B + 1]: its percentiles."""
    if not known or not np.isfinite(values).all():
        return Interval(float(values[0]), np.nan, np.nan)
    low, high = np.quantile(values[1:], [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(float(values[0]), float(low), float(high))


def p_value(values: Float64Array) -> float:
    """Two-sided, that a statistic [B + 1] is zero: from the share of resamples on the other side of zero."""
    num = len(values) - 1
    tails = (1 + (values[1:] <= 0).sum()) / (num + 1), (1 + (values[1:] >= 0).sum()) / (num + 1)
    return float(min(1.0, 2.0 * min(tails)))


def holm(p_values: Float64Array) -> Float64Array:
    """Adjusted for how many there are, float64 [n] (Holm, "A simple sequentially rejective multiple test procedure",
    1979). NaN, which is no test, stays so and does not count."""
    adjusted: Float64Array = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(np.isfinite(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p_values[order]))
    return adjusted
