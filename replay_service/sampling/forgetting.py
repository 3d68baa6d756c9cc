"""Forgetting, measured online: what the rehearsed samples say of the whole corpus.

Rehearsed samples are drawn with known shares of the strata, and are measured before they are trained on. So a
stratified mean of what they lost estimates what the whole corpus lost, without an evaluation set. Only first visits
count: later ones tell of samples that the run has trained on. This estimator is this project's choice.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

LEAST_REPORTS = 8.0
"""Of fewer recent first visits no estimate is made."""


class Forgetting(NamedTuple):
    """Mean loss minus mean base loss over the corpus, nats per token, and the standard error of this estimate."""

    nats: float
    standard_error: float


def estimate(
    sizes: Int64Array, count: Float64Array, excess: Float64Array, squares: Float64Array, prior_weight: float
) -> Forgetting | None:
    """The forgetting of the whole corpus, or None while fewer than `LEAST_REPORTS` samples tell of it.

    Args:
        sizes: int64 [num_groups, num_quantiles], samples of each stratum.
        count: float64, the same shape: how many first visits were reported (decayed, so not whole).
        excess: float64: their summed loss minus base loss, nats per token.
        squares: float64: the sum of the squares of these differences.
        prior_weight: how many reported samples the prior of a stratum is worth (m).

    `sum_k N_k / N * mean_k`, where mean_k = (m * a0 + E_k) / (m + n_k) and the prior a0 = group mean + quantile mean -
    global mean, each shrunk in the same way: a stratum of few reports leans on its neighbours. The standard error adds
    what is uncertain of the strata and of the prior that they lean on, with v the variance of single reports around
    the prior: `sqrt(sum_k (N_k / N)**2 * v / (m + n_k) + (sum_k N_k / N * m / (m + n_k))**2 * v / n)`. Where strata
    differ in ways that the prior does not see, two of them hold the truth nearly nine times in ten.
    """
    num_reports = float(count.sum())
    if num_reports < LEAST_REPORTS:
        return None
    overall = float(excess.sum()) / num_reports
    group = _shrunk(excess.sum(axis=1), count.sum(axis=1), overall, prior_weight)
    quantile = _shrunk(excess.sum(axis=0), count.sum(axis=0), overall, prior_weight)
    prior = group[:, None] + quantile[None, :] - overall
    mean = _shrunk(excess, count, prior, prior_weight)
    share = sizes / sizes.sum()
    # Of differences around the prior; rounding may leave a little less than nothing.
    variance = max(0.0, float((squares - 2.0 * prior * excess + count * prior**2).sum()) / num_reports)
    leaning = float((share * prior_weight / (prior_weight + count)).sum())
    of_strata = float((share**2 / (prior_weight + count)).sum())
    return Forgetting(float((share * mean).sum()), float(np.sqrt(variance * (of_strata + leaning**2 / num_reports))))


def _shrunk(total: Float64Array, count: Float64Array, prior: Float64Array | float, weight: float) -> Float64Array:
    return (weight * prior + total) / (weight + count)
