"""How forgetting responds to the injection ratio, learned from a run's own reports.

The model has one scale, which is fitted, and follows the ratio p with a lag:

    dF/dt = (scale * p(t) ** -elasticity - F) / lag

The power is what the forgetting law (Bethune et al., 2025) gives for ratios that are not very small. Elasticity and lag
are not known. So several pairs of them are fitted, and their answers are averaged, weighted by their likelihood
(Hoeting et al., "Bayesian model averaging: a tutorial", 1999). The model explains what changes of the ratio do, so the
window of reports goes on over them. The choice of this model is this project's.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.expected import Strata, expected_excess
from replay_service.sampling.forgetting import FirstVisits
from replay_service.sampling.lines import LEAST_WINDOW_STEPS

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

HORIZON_HALF_LIVES: Final = 2.0
"""When forgetting is to be at the budget: sooner would take ratios that swing."""
WINDOW_HALF_LIVES: Final = 6.0
"""Reports that are older do not count, and later ones count more: the scale may drift."""
MOST_RISE: Final = 3.0
MOST_FALL: Final = 0.4
"""The greatest factors that one answer may ask for, so that a wrong guess of one pair does not outweigh the others."""
_ELASTICITIES: Final = (0.3, 0.5, 0.75)
_LAGS: Final = (0.5, 1.5, 4.0)
"""In half-lives."""
_LEAST_RATIO: Final = 1e-4
"""Below it less rehearsal makes no difference: the power law has no end there, and forgetting has one."""
_TINY: Final = 1e-12


@dataclass(frozen=True, slots=True)
class RatioCourse:
    """The injection ratio over the steps of a run.

    Attributes:
        steps: float64 [n], from which step each ratio was in force; ascending.
        ratios: float64 [n].
    """

    steps: Float64Array
    ratios: Float64Array

    def response(self, at: NDArray[np.float64], elasticity: float, lag: float) -> Float64Array:
        """Forgetting at the steps `at`, float64 [n], for the scale at which the present ratio tends to one nat.

        The solution of the model between the changes of the ratio. A run begins at step 0 with nothing forgotten. A
        course that begins later begins at rest.
        """
        ratios = np.maximum(self.ratios, _LEAST_RATIO)
        tends = (ratios / ratios[-1]) ** -elasticity
        begun = [tends[0] if self.steps[0] > 0 else 0.0]
        for length, level in zip(np.diff(self.steps), tends[:-1], strict=True):
            begun.append(level + (begun[-1] - level) * math.exp(-length / lag))
        place = np.maximum(0, np.searchsorted(self.steps, at, side="right") - 1)
        passed = np.exp(-np.maximum(0.0, at - self.steps[place]) / lag)
        found: Float64Array = tends[place] + (np.array(begun)[place] - tends[place]) * passed
        return found


@dataclass(frozen=True, slots=True)
class _Fit:
    """The model of one elasticity and one lag, fitted to the reports."""

    elasticity: float
    lag: float
    scale: float
    response: Float64Array
    """Of the steps of the reports; its last value is of the step that is decided on."""
    residual: float
    """The weighted sum of squares that the model leaves."""

    def change(self, budget: float, horizon: float) -> float:
        """The logarithm of the factor for the ratio by which forgetting is at the budget after `horizon` steps."""
        kept = math.exp(-horizon / self.lag)
        tends = (budget / self.scale - self.response[-1] * kept) / (1.0 - kept)
        if tends <= 0.0:
            return math.log(MOST_RISE)
        return min(math.log(MOST_RISE), max(math.log(MOST_FALL), -math.log(tends) / self.elasticity))


def change_of_ratio(visits: FirstVisits, course: RatioCourse, step: int, budget: float) -> float:
    """The logarithm of the factor for the ratio by which forgetting will be at the budget in two half-lives.

    Args:
        visits: enough of them for an estimate of forgetting.
        course: the ratio of every step that has a plan.
        step: the first one that has none.
        budget: nats per token.
    """
    reports, half_life = visits.reports, visits.half_life
    age = (visits.step - reports["step"]).astype(np.float64)
    kernel = np.maximum(0.0, 1.0 - age / max(LEAST_WINDOW_STEPS, WINDOW_HALF_LIVES * half_life))
    weight = kernel * _per_draw(visits)
    at = np.append(reports["step"], step).astype(np.float64)
    excess = reports["excess_nats"]
    best = min(_fits(course, at, half_life, weight, excess), key=lambda fit: fit.residual)
    excess = excess - _of_stratum(visits, kernel, excess - best.scale * best.response[:-1])
    fits = _fits(course, at, half_life, weight, excess)
    least = min(fit.residual for fit in fits)
    noise = max(_TINY, least / float(weight.sum()))
    likelihood = np.array([math.exp(0.5 * (least - fit.residual) / noise) for fit in fits])
    changes = [fit.change(budget, HORIZON_HALF_LIVES * half_life) for fit in fits]
    return float(likelihood @ changes / likelihood.sum())


def _per_draw(visits: FirstVisits) -> Float64Array:
    """The inverse of each report's probability; scaled so that they add up to the number of effective reports."""
    weight = visits.sizes[visits.reports["stratum"]] / visits.reports["chance"]
    scaled: Float64Array = weight * (weight.sum() / (weight**2).sum())
    return scaled


def _of_stratum(visits: FirstVisits, kernel: Float64Array, rest: Float64Array) -> Float64Array:
    """By how much each report's stratum is expected to differ from the corpus, float64 [n]."""
    _, step = np.unique(visits.reports["step"], return_inverse=True)
    stratum = visits.reports["stratum"].astype(np.int64)
    strata = Strata.of_one(visits.sizes / visits.sizes.sum(), visits.num_quantiles)
    level, expected = expected_excess(strata, stratum, step, kernel, rest, visits.prior_weight)
    return expected - level


def _fits(
    course: RatioCourse, at: Float64Array, half_life: float, weight: Float64Array, excess: Float64Array
) -> list[_Fit]:
    """By weighted least squares, the model of every elasticity and lag; `at` ends with the step that is decided on."""
    fits = []
    for elasticity, lag in itertools.product(_ELASTICITIES, _LAGS):
        response = course.response(at, elasticity, lag * half_life)
        own = response[:-1]
        scale = max(_TINY, float(weight @ (own * excess)) / max(_TINY, float(weight @ own**2)))
        residual = float(weight @ (excess - scale * own) ** 2)
        fits.append(_Fit(elasticity, lag * half_life, scale, response, residual))
    return fits
