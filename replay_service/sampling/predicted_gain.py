"""The predicted gain: what drawing by damage is worth over uniform draws, from a run's own reports.

Forgetting of stratum k under repeated rehearsal is modelled as

    F_k = a_k * (n_k / w_k) ** -e

with n_k its share of the draws, w_k its share of the corpus, and e the elasticity. Let a_k be lognormal over the
corpus, and s the standard deviation of its logarithm. Then the gain of draws in proportion to `w_k * F_k ** g` has a
closed form. Model and closed form are this project's. The spread s is found by the method of moments: the products of
two reports of one stratum tell of its square without the noise of samples, as in the analysis of variance.
"""

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.forgetting import FirstVisits, Forgetting, student
from replay_service.sampling.lines import LEAST_WINDOW_STEPS, WANTED_REPORTS, WINDOW_HALF_LIVES
from replay_service.sampling.run_state import RunState

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

NUM_BLOCKS: Final = 32
"""The steps are dealt into so many blocks; the error comes from leaving out one block after the other."""
EVEN: Final = 0.02
"""Damage counts as even where at most this share of the rows can be saved."""


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


ELASTICITY: Final = Interval(0.33, 0.26, 0.41)
"""As measured on small language models, with the least and the greatest value that were measured."""


@dataclass(frozen=True, slots=True)
class Draws:
    """How a run draws.

    Attributes:
        probabilities: float64 [num_strata], of a draw now.
        are_first: bool [num_strata], whether all draws of a stratum have been first visits.
        sharpness, floor: of the run's `mix_cd`, whether it draws by it now or not.
        steady_since: the step from which the policy has been what it is.
    """

    probabilities: Float64Array
    are_first: NDArray[np.bool_]
    sharpness: float
    floor: float
    steady_since: int

    @classmethod
    def of(cls, state: RunState) -> "Draws":
        config, are_first = state.config, state.cursors.share_of_first_visits() == 1.0
        return cls(state.probabilities(), are_first, config.sharpness, config.floor, state.steady_since)


@dataclass(frozen=True, slots=True)
class PredictedGain:
    """The gain of drawing by damage, over uniform draws of as many rows. Shares are negative where it costs.

    Attributes:
        spread: s, the standard deviation of ln a_k over the corpus, of a lognormal with the same relative variance.
        mean_reduction: the share by which mean forgetting falls.
        rows_saved: the share of the rows that is saved at the same mean.
        worst_reduction: the share by which ln(worst / mean) falls.
        num_effective: effective reports, as in `Forgetting`.
        advice: one sentence.
        reason: why nothing can be said; the others but `num_effective` are None then.
        elasticity: e.
    """

    spread: Interval | None
    mean_reduction: Interval | None
    rows_saved: Interval | None
    worst_reduction: Interval | None
    num_effective: float
    advice: str | None
    reason: str | None
    elasticity: Interval = ELASTICITY

    @property
    def is_even(self) -> bool:
        """Whether damage is so even that drawing by it saves next to nothing."""
        saved, worst = self.rows_saved, self.worst_reduction
        return saved is not None and worst is not None and _is_even(saved, worst)


def predict_gain(visits: FirstVisits, present: Forgetting, draws: Draws) -> PredictedGain:
    """The gain of `mix_cd` with the signal `excess_loss` and the run's sharpness and floor.

    Args:
        visits: what the run knows by first visits.
        present: the forgetting of the corpus, as `visits.of_corpus()` gives it.
        draws: how the run draws.
    """
    if present.nats is None:
        return _nothing(present.num_effective, f"forgetting is {present}")
    reports = _Reports.of(visits, draws)
    num = reports.num_effective
    if num < WANTED_REPORTS:
        return _nothing(
            num,
            f"the first visits reported in the last {WINDOW_HALF_LIVES:g} half-lives are worth {num:.1f} independent "
            f"ones, and a prediction takes {WANTED_REPORTS:g}",
        )
    spreads = [_spread(reports, exponent) for exponent in _exponents(visits, draws)]
    known = [each for each in spreads if each is not None]
    if len(known) < len(spreads):
        return _nothing(num, "so little is forgotten that it can hardly be told from nothing")
    value, least, most = known
    sharpness = draws.sharpness * (1.0 - draws.floor) * reports.share_told()
    return _gain(Interval(value.value, least.low, most.high), sharpness, num)


def _nothing(num_effective: float, reason: str) -> PredictedGain:
    return PredictedGain(None, None, None, None, num_effective, None, reason)


def _exponents(visits: FirstVisits, draws: Draws) -> Interval:
    """The power of n_k / w_k to which forgetting has answered by now.

    A change of the draws is taken to have half of its effect after a half-life, and at most all of it.
    """
    answered = 1.0 - 0.5 ** (max(0, visits.step - draws.steady_since) / visits.half_life)
    return Interval(ELASTICITY.value * answered, ELASTICITY.low * answered, ELASTICITY.high)


# The spread


@dataclass(frozen=True, slots=True)
class _Reports:
    """First visits of the latest three half-lives, 8 steps at least.

    Attributes:
        stratum, block: int64 [n], of each report.
        weight: float64 [n]: how much of the corpus each report stands for, later ones weighing more; adding up to one.
        excess: float64 [n], nats per token.
        drawn: float64 [num_strata], n_k / w_k.
        share: float64 [num_strata], w_k.
    """

    stratum: Int64Array
    block: Int64Array
    weight: Float64Array
    excess: Float64Array
    drawn: Float64Array
    share: Float64Array

    @classmethod
    def of(cls, visits: FirstVisits, draws: Draws) -> "_Reports":
        window = max(LEAST_WINDOW_STEPS, WINDOW_HALF_LIVES * visits.half_life)
        kernel = 1.0 - (visits.step - visits.reports["step"]) / window
        reports, kernel = visits.reports[kernel > 0.0], kernel[kernel > 0.0]
        stratum, share = reports["stratum"].astype(np.int64), visits.sizes / visits.sizes.sum()
        weight = kernel * share[stratum] / reports["chance"]
        _, step = np.unique(reports["step"], return_inverse=True)
        num, inverses = (_sums(stratum, each, len(share)) for each in (kernel, kernel / reports["chance"]))
        # The latest probabilities answer to the noise of the same reports; their mean over the window does so less.
        recent = np.divide(num, inverses, out=draws.probabilities.copy(), where=draws.are_first & (inverses > 0.0))
        drawn = np.divide(recent, share, out=np.ones_like(share), where=share > 0.0)
        return cls(stratum, step % NUM_BLOCKS, weight / weight.sum(), reports["excess_nats"], drawn, share)

    @property
    def num_effective(self) -> float:
        return 1.0 / float((self.weight**2).sum())

    def share_told(self) -> float:
        """The share of a small relative difference in forgetting that is seen in the mean of `excess_loss`.

        That signal is max(0, excess). Where a stratum loses d more, its mean rises by d * P(excess > 0).
        """
        told = (self.weight @ self.excess) * (self.weight @ (self.excess > 0.0))
        return max(0.0, float(told / (self.weight @ np.maximum(0.0, self.excess))))


def _spread(reports: _Reports, exponent: float) -> Interval | None:
    """s, where forgetting has answered to this power of n_k / w_k; None where the mean may be nothing.

    With y_i = excess * (n_k / w_k) ** exponent over its mean, the products (y_i - 1) * (y_j - 1) of two reports of one
    stratum and of different blocks estimate the relative variance v of a_k over the corpus; and `s = sqrt(ln(1 + v))`.
    """
    at_uniform = reports.excess * reports.drawn[reports.stratum] ** exponent
    mean = float(reports.weight @ at_uniform)
    if mean <= 0.0:
        return None
    at_uniform /= mean
    apart = reports.weight * (at_uniform - 1.0)
    num_blocks, num_strata = int(reports.block.max()) + 1, len(reports.share)
    cells = _sums(reports.block * num_strata + reports.stratum, apart, num_blocks * num_strata)
    cells = cells.reshape(num_blocks, num_strata)
    weight, sums = (_sums(reports.block, each, num_blocks) for each in (reports.weight, reports.weight * at_uniform))
    per_share = np.divide(1.0, reports.share, out=np.zeros(num_strata), where=reports.share > 0.0)
    within = _pairs(cells) @ per_share - _pairs(cells.sum(axis=1))
    means = _without_each(sums) / _without_each(weight)
    if means[0] <= _half_width(means):
        return None
    variances = within / _pairs(weight) / means**2
    half = _half_width(variances)
    return Interval(*(_of_lognormal(float(each)) for each in (variances[0], variances[0] - half, variances[0] + half)))


def _sums(place: Int64Array, values: Float64Array, num: int) -> Float64Array:
    """The sum of the values of each place in [0, num)."""
    return np.bincount(place, values, num).astype(np.float64)


def _of_lognormal(relative_variance: float) -> float:
    """The standard deviation of the logarithm of a lognormal with this variance over its squared mean."""
    return math.sqrt(math.log1p(max(0.0, relative_variance)))


def _without_each(parts: Float64Array) -> Float64Array:
    """The sum of the parts [num_blocks, ...], and without each: [1 + num_blocks, ...]."""
    whole = parts.sum(axis=0)
    return np.concatenate([whole[None], whole - parts])


def _pairs(parts: Float64Array) -> Float64Array:
    """The sum of the products of any two different parts [num_blocks, ...], and without each: [1 + num_blocks, ...]."""
    whole = parts.sum(axis=0)
    products = whole**2 - (parts**2).sum(axis=0)
    return np.concatenate([products[None], products - 2.0 * parts * (whole - parts)])


def _half_width(estimates: Float64Array) -> float:
    """Half the interval of the first of the estimates, from those without each block (the jackknife)."""
    num_blocks = len(estimates) - 1
    squares = float(((estimates[1:] - estimates[0]) ** 2).sum())
    return student(num_blocks - 1.0) * math.sqrt(squares * (num_blocks - 1) / num_blocks)


# The gain


def _gain(spread: Interval, sharpness: float, num_effective: float) -> PredictedGain:
    """What follows from the spread and the elasticity; an interval is between the extremes of both."""
    exponents = [[_exponent_saved(s, e, sharpness) for s in spread] for e in ELASTICITY]
    saved = _interval([_share(each) for row in exponents for each in row])
    mean = [_share(e * each) for e, row in zip(ELASTICITY, exponents, strict=True) for each in row]
    worst = _interval([1.0 - 1.0 / (1.0 + sharpness * e) for e in ELASTICITY])
    return PredictedGain(spread, _interval(mean), saved, worst, num_effective, _advice(saved, worst), None)


def _interval(found: list[float]) -> Interval:
    return Interval(found[0], min(found), max(found))


def _share(exponent: float) -> float:
    return -math.expm1(-exponent)


def _exponent_saved(spread: float, elasticity: float, sharpness: float) -> float:
    """x, where draws by damage need `exp(-x)` of the rows that uniform draws need for the same mean.

    Draws in proportion to w_k * F_k ** g settle at n_k / w_k in proportion to a_k ** b, with b = g / (1 + g * e). With
    a_k lognormal, the mean then falls by the factor exp(-e * x), `x = s ** 2 * b * (2 - b * (1 + e)) / 2`. It is least
    at g = 1, where `x = s ** 2 / (2 * (1 + e))`.
    """
    power = sharpness / (1.0 + sharpness * elasticity)
    return spread**2 * power * (2.0 - power * (1.0 + elasticity)) / 2.0


def _is_uniform(worst: Interval) -> bool:
    """Whether the sharpness or the floor makes all draws uniform, however damage is spread."""
    return worst.value == 0.0


def _is_even(saved: Interval, worst: Interval) -> bool:
    return not _is_uniform(worst) and max(-saved.low, saved.high) < EVEN


def _advice(saved: Interval, worst: Interval) -> str:
    if _is_uniform(worst):
        return "with this sharpness and floor all draws are uniform; a sharpness of 1 draws by damage"
    if _is_even(saved, worst):
        return "damage is even here: prioritizing gains nothing; raise rehearsal_weight instead"
    narrows = f"narrows the worst domain's excess over the mean by about {worst.value:.0%}"
    if saved.value < 0.0:
        costs = f"{-saved.value:.0%} ({-saved.high:.0%} to {-saved.low:.0%})"
        return f"drawing by damage this sharply costs about {costs} more rows and {narrows}; sharpness 1 costs none"
    saves = f"{saved.value:.0%} ({saved.low:.0%} to {saved.high:.0%}) of the rows"
    if saved.low < EVEN / 10:
        return f"damage may be even here: drawing by damage saves about {saves}; more reports will tell"
    return f"drawing by damage saves about {saves} and {narrows}"
