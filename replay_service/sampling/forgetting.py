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

_LEAST_SPREAD = 1e-9
"""Ages that are spread by a smaller share of their size are equal, but for rounding."""


class Forgetting(NamedTuple):
    """Mean loss minus mean base loss over the corpus, nats per token, and the standard error of this estimate."""

    nats: float
    standard_error: float


class FirstVisits(NamedTuple):
    """Decayed sums over the first visits of each stratum: float64 [num_groups, num_quantiles] each.

    With w the weight of a report, e its loss minus base loss in nats per token, and a its age: steps before some step,
    the same for all of them; of later steps it is negative.
    """

    weight: Float64Array
    """Sum of w: how many were reported (decayed, so not whole)."""
    excess: Float64Array
    """Sum of w * e."""
    squares: Float64Array
    """Sum of w * e**2."""
    age: Float64Array
    """Sum of w * a."""
    age_squares: Float64Array
    """Sum of w * a**2."""
    aged_excess: Float64Array
    """Sum of w * a * e."""

    def moved(self, slope: float, ahead: float) -> "FirstVisits":
        """As if each report had been made `ahead` steps after age 0: e grows by slope * (a + ahead)."""
        age = self.age + ahead * self.weight
        aged_excess = self.aged_excess + ahead * self.excess
        age_squares = self.age_squares + ahead * (self.age + age)
        excess = self.excess + slope * age
        squares = self.squares + slope * (2.0 * aged_excess + slope * age_squares)
        return FirstVisits(self.weight, excess, squares, age, age_squares, aged_excess + slope * age_squares)


class Trend(NamedTuple):
    """By how much forgetting grows a step: nats per token.

    The slope is shrunk towards zero; the variance is that of the slope before, and the mean age that of the reports.
    """

    slope: float
    variance: float
    mean_age: float


def estimate(sizes: Int64Array, visits: FirstVisits, prior_weight: float, ahead: float = 0.0) -> Forgetting | None:
    """The forgetting of the whole corpus, or None while fewer than `LEAST_REPORTS` samples tell of it.

    Args:
        sizes: int64 [num_groups, num_quantiles], samples of each stratum.
        visits: what was reported of them.
        prior_weight: how many reported samples the prior of a stratum is worth (m).
        ahead: for how many steps after age 0; the trend is taken to go on until then.

    Each report is first moved along the `trend` to the step that is asked for: its excess loss grows by
    b * (age + ahead). Of n_k reports that were so moved, with the sum E_k, it is `sum_k N_k / N * mean_k`, where
    mean_k = (m * a0 + E_k) / (m + n_k) and the prior a0 = group mean + quantile mean - global mean, each shrunk in the
    same way: a stratum of few reports leans on its neighbours.

    The standard error adds what is uncertain of the strata, of the prior that they lean on, and of the trend, with v
    the variance of single moved reports around the prior: `sqrt(sum_k (N_k / N)**2 * v / (m + n_k) + (sum_k N_k / N *
    m / (m + n_k))**2 * v / n + (mean age + ahead)**2 * var(b))`. Two of them hold the truth nearly nine times in ten
    where all reports are of one step and strata differ in ways that the prior does not see. They hold it more often
    where reports are of many steps: a sum of decayed weights n is taken for n whole reports, and its mean is
    less noisy than theirs.
    """
    num_reports = float(visits.weight.sum())
    if num_reports < LEAST_REPORTS:
        return None
    slope, variance_of_slope, mean_age = trend(visits, prior_weight)
    count, excess, squares, *_ = visits.moved(slope, ahead)
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
    of_level = variance * (of_strata + leaning**2 / num_reports)
    of_trend = (mean_age + ahead) ** 2 * variance_of_slope
    return Forgetting(float((share * mean).sum()), float(np.sqrt(of_level + of_trend)))


def trend(visits: FirstVisits, prior_weight: float) -> Trend:
    """The slope that all strata have in common, by weighted regression of the excess loss on the age.

    The model: report i of stratum k is e_i = u + u_k - b * a_i + noise of variance v, and strata differ by u_k of
    variance v / m, as in `estimate`. Its generalised least squares take (sum of x) * (sum of y) / (m + n_k) from the
    sum of each product x * y over a stratum, and then fit the line u - b * a to what is left of all strata. So a
    stratum's own level weighs little: a shift of what is rehearsed to other strata is hardly taken for a trend.

    That slope b has the variance v / S, with S what is left of the sum of a * a. It is shrunk by the factor
    max(0, 1 - var(b) / b**2), as James and Stein shrink: by next to nothing where forgetting changes clearly, and to
    zero where the change could be noise.
    """
    n, e, ee, a, aa, ae = visits
    own, kept = 1.0 / (prior_weight + n), prior_weight / (prior_weight + n)
    num = float((n * kept).sum())
    mean_age, mean_excess = float((a * kept).sum()) / num, float((e * kept).sum()) / num
    # What is left of the products when the strata's means, and then the mean over all, are taken out.
    ages = float((aa - a * a * own).sum()) - num * mean_age * mean_age
    both = float((ae - a * e * own).sum()) - num * mean_age * mean_excess
    excess = float((ee - e * e * own).sum()) - num * mean_excess * mean_excess
    if ages <= _LEAST_SPREAD * float(aa.sum()):
        return Trend(0.0, 0.0, mean_age)
    slope = -both / ages
    variance = max(0.0, excess - both * both / ages) / float(n.sum()) / ages
    told = slope * slope
    return Trend(slope * (1.0 - variance / told) if told > variance else 0.0, variance, mean_age)


def _shrunk(total: Float64Array, count: Float64Array, prior: Float64Array | float, weight: float) -> Float64Array:
    return (weight * prior + total) / (weight + count)
