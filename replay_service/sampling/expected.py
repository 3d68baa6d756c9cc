"""What a report is expected to say, from its stratum, its domain and its quantile: so that they add no noise.

Like the damage rates, means are pooled partially: a stratum of few reports leans on its domain and its quantile.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]


def expected_excess(
    stratum: Int64Array,
    weight: Float64Array,
    excess: Float64Array,
    step: Int64Array,
    share: Float64Array,
    num_quantiles: int,
    prior_weight: float,
) -> tuple[float, Float64Array]:
    """The mean over the corpus, and what the reports of the other steps lead to expect of each report, float64 [n].

    Args:
        stratum, weight, excess: int64, float64, float64 [n], of each report.
        step: int64 [n], its step, numbered from 0.
        share: float64 [num_strata], the mass of each stratum.
        num_quantiles: strata of a domain; stratum k is quantile k % num_quantiles of domain k // num_quantiles.
        prior_weight: how many reports a prior is worth (m).

    With n and E the weight and the summed excess of a stratum's reports, its mean is `(m * a + E) / (m + n)`, where the
    prior a is domain mean + quantile mean - overall mean, the first two shrunk to the last in the same way.
    """
    sums = np.stack([weight, weight * excess])
    domain, quantile, everything = stratum // num_quantiles, stratum % num_quantiles, np.zeros_like(stratum)
    rest = [_without_own_step(each, step, sums) for each in (everything, domain, quantile, stratum)]
    expected = _pooled(rest, prior_weight)
    cells = np.array([np.bincount(stratum, each, len(share)) for each in sums]).reshape(2, -1, num_quantiles)
    whole = [cells.sum(axis=axis, keepdims=True) for axis in ((1, 2), 2, 1)]
    means = _pooled([*whole, cells], prior_weight)
    return float(share @ means.ravel()), expected


def _pooled(levels: Sequence[Float64Array], weight: float) -> Float64Array:
    """Means, from the weights and sums [2, ...] over everything, a domain, a quantile and a stratum."""
    overall, domain, quantile, own = levels
    level = overall[1] / np.maximum(overall[0], np.finfo(np.float64).tiny)
    by_domain, by_quantile = ((weight * level + sums) / (weight + num) for num, sums in (domain, quantile))
    means: Float64Array = (weight * (by_domain + by_quantile - level) + own[1]) / (weight + own[0])
    return means


def _without_own_step(key: Int64Array, step: Int64Array, sums: Float64Array) -> Float64Array:
    """For each report, the sums [2, n] over the reports of its key that are not of its step; [2, n]."""
    both = key * (int(step.max()) + 1) + step
    rest: Float64Array = _over(key, sums) - _over(both, sums)
    rest[0] = np.maximum(0.0, rest[0])
    return rest


def _over(key: Int64Array, sums: Float64Array) -> Float64Array:
    """For each report, the sums [2, n] over all reports of its key."""
    _, place = np.unique(key, return_inverse=True)
    return np.stack([np.bincount(place, each)[place] for each in sums])
