"""Forgetting, measured online: what the rehearsed samples say of the whole corpus, or of a part of it.

Rehearsed samples are drawn with known probabilities, and are measured before they are trained on. So a weighted mean of
what they have lost estimates what the corpus has lost, without an evaluation set. Only first visits count: later ones
tell of samples that the run has trained on. This estimator is this project's choice; its parts are textbook ones.

- Weights by inverse probability (Horvitz and Thompson, "A generalization of sampling without replacement from a finite
  universe", 1952): whatever the policy draws, the estimate is of the corpus.
- A line through the reports of a window that ends now, later ones weighing more (Fan and Gijbels, "Local polynomial
  modelling and its applications", 1996): so it does not lag while forgetting grows.
- The error by leaving out one step after the other (the jackknife), since the reports of a step share its weights. The
  windows are short: so the line of one window is compared with those of shorter ones, and what they differ by beyond
  their noise is added to the error.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.expected import expected_excess

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

LEVEL: Final = 0.95
LEAST_REPORTS: Final = 6.0
"""Effective reports, and effective steps, that an estimate takes."""
LEAST_COVERED: Final = 0.9
"""The share of the mass that an estimate must cover."""
WINDOW_HALF_LIVES: Final = 3.0
"""The longest window. Its reports are a third of it old on average, one half-life."""

WANTED_REPORTS: Final = 60.0
"""Effective reports of a window, if it need not be longer than three half-lives for them."""
_COMPARED: Final = (1.0, 0.45, 0.3, 0.2)
"""Of so many times as many are the window and the shorter ones that it is compared with."""
LEAST_WINDOW_STEPS: Final = 8.0
_BEND: Final = 1.5
"""How much of the squared difference between windows, beyond its noise, is added to the squared error."""
_NORMAL: Final = 1.959963984540054
"""The two-sided 95 % point of the normal distribution."""
_RIDGE: Final = 1e-10


@dataclass(frozen=True, slots=True)
class Forgetting:
    """An estimate of the mean loss minus mean base loss over a corpus or a domain, nats per token.

    Attributes:
        nats: the estimate; None where nothing can be said.
        low, high: the interval that holds the truth as often as `level` says.
        level: 0.95.
        num_effective: effective reports (Kish: the square of the sum of their weights, over the sum of their squares).
        share_covered: the share of the mass whose strata the reports tell of.
        step: the latest step that was reported, which the estimate is of; None before the first report.
        window_steps: the estimate is made of reports of so many steps up to that one.
        reason: why nothing can be said; None where something is.
    """

    nats: float | None
    low: float | None
    high: float | None
    num_effective: float
    share_covered: float
    step: int | None
    window_steps: int
    reason: str | None
    level: float = LEVEL

    def __str__(self) -> str:
        if self.nats is None:
            return f"not known: {self.reason}"
        return (
            f"{self.nats:+.4f} nats ({self.low:+.4f} to {self.high:+.4f}), {self.num_effective:.0f} effective reports "
            f"of {self.window_steps} steps, {self.share_covered:.0%} of the mass covered"
        )


_NOTHING_REPORTED: Final = Forgetting(None, None, None, 0.0, 0.0, None, 0, "no first visit was reported yet")


@dataclass(frozen=True, slots=True)
class Target:
    """Which part of a corpus an estimate is of, and how it is sampled.

    Attributes:
        share: float64 [num_strata], the mass of each stratum, adding up to one; 0 for those that are no part of it.
        chance: float64 [num_strata], the probability that a single draw is a first visit of the stratum now.
        num_quantiles: strata of a domain.
        half_life: steps; the longest window is three of them.
        prior_weight: how many reports the prior of a stratum's mean is worth.
    """

    share: Float64Array
    chance: Float64Array
    num_quantiles: int
    half_life: float
    prior_weight: float


@dataclass(frozen=True, slots=True)
class FirstVisits:
    """What a run knows of its corpus by first visits; it does not change while the run goes on.

    Attributes:
        reports: REPORT_ROW [n], the latest first visits.
        step: the latest step that was reported.
        sizes: int64 [num_strata], samples of each stratum.
        chance, num_quantiles, half_life, prior_weight: as in `Target`.
    """

    reports: np.ndarray
    step: int
    sizes: Int64Array
    chance: Float64Array
    num_quantiles: int
    half_life: float
    prior_weight: float

    def of_corpus(self) -> Forgetting:
        """The forgetting of the whole corpus."""
        return self._of(self.sizes, self.reports)

    def of_domains(self) -> list[Forgetting]:
        """The forgetting of each domain."""
        return [self.of_domain(each) for each in range(len(self.sizes) // self.num_quantiles)]

    def of_domain(self, domain: int) -> Forgetting:
        """The forgetting of one domain, by its number."""
        is_mine = np.arange(len(self.sizes)) // self.num_quantiles == domain
        of_report = self.reports["stratum"] // self.num_quantiles
        return self._of(np.where(is_mine, self.sizes, 0), self.reports[of_report == domain])

    def since(self, step: int) -> "FirstVisits":
        """Those of `step` and later ones."""
        return replace(self, reports=self.reports[self.reports["step"] >= step])

    def _of(self, sizes: Int64Array, reports: np.ndarray) -> Forgetting:
        if not len(reports) or not sizes.any():
            return _NOTHING_REPORTED
        share = sizes / sizes.sum()
        target = Target(share, self.chance, self.num_quantiles, self.half_life, self.prior_weight)
        return estimate(reports, target, self.step)


@dataclass(frozen=True, slots=True)
class _Line:
    """The line through the reports of a window, at its end."""

    nats: float
    variance: float
    window: float
    num_reports: float
    num_steps: float
    covered: float


def estimate(reports: np.ndarray, target: Target, step: int) -> Forgetting:
    """The forgetting of the target at `step`, from first visits.

    Args:
        reports: REPORT_ROW [n], first visits of the target up to `step`, at least one, in any order.
        target: what the estimate is of.
        step: the latest step that was reported.

    With w_i = kernel(age_i) * share / chance of report i, m the means that other steps' reports lead to expect, and a
    the value at `step` of the weighted line through (step_i, e_i - m_i): `sum_k share_k * m_k + a`. The kernel falls
    from one to zero over the window, which is as long as it takes for 60 effective reports, from 8 steps to three
    half-lives.
    """
    lines = _lines(reports, target, step)
    line = lines[0]
    # The line may reach back to before the run's first step, where there is nothing.
    window = min(round(line.window), step + 1)
    reason = _reason(line, window)
    if reason is not None:
        return Forgetting(None, None, None, line.num_reports, line.covered, step, window, reason)
    variance = line.variance + _BEND * max([0.0, *(_bend(line, shorter) for shorter in lines[1:])])
    half = student(line.num_steps - 2.0) * math.sqrt(variance)
    found = (line.num_reports, line.covered, step, window)
    return Forgetting(line.nats, line.nats - half, line.nats + half, *found, reason=None)


def student(freedom: float) -> float:
    """The two-sided 95 % point of Student's t, by its expansion (Abramowitz and Stegun, 26.7.5); `freedom` above 3."""
    z, n = _NORMAL, freedom
    terms = (
        (z**3 + z) / (4 * n),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3),
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4),
    )
    return z + sum(terms)


def _reason(line: _Line, steps: int) -> str | None:
    few = min(line.num_reports, line.num_steps)
    if few < LEAST_REPORTS:
        return (
            f"the first visits reported in the last {steps} steps are worth {few:.1f} independent ones, and an "
            f"estimate takes {LEAST_REPORTS:g}"
        )
    if line.covered < LEAST_COVERED:
        return (
            f"the first visits reported in the last {steps} steps tell of {line.covered:.0%} of the mass, and an "
            f"estimate takes {LEAST_COVERED:.0%}; a greater floor draws more of the rest, and held_back keeps samples "
            "for first visits"
        )
    return None


def _bend(line: _Line, shorter: _Line) -> float:
    """By how much the square of what two windows differ by is more than noise alone would make it."""
    if shorter.window >= line.window or min(shorter.num_reports, shorter.num_steps) < 4.0:
        return 0.0
    noise = max(shorter.variance - line.variance, 0.1 * line.variance)
    return (line.nats - shorter.nats) ** 2 - noise


def _lines(reports: np.ndarray, target: Target, step: int) -> list[_Line]:
    """Of the window, and of shorter ones."""
    age = (step - reports["step"]).astype(np.float64)
    weight = target.share[reports["stratum"]] / reports["chance"]
    most = max(LEAST_WINDOW_STEPS, min(WINDOW_HALF_LIVES * target.half_life, 2.0 * float(age.max(initial=0.0)) + 2.0))
    windows = np.minimum(
        LEAST_WINDOW_STEPS * 2.0 ** np.arange(0.0, 0.51 + np.log2(most / LEAST_WINDOW_STEPS), 0.5), most
    )
    effective = np.array([_kish(weight * _kernel(age, window)) for window in windows])
    enough = [effective >= WANTED_REPORTS * share for share in _COMPARED]
    wanted = [int(np.argmax(each)) if each.any() else -1 for each in enough]
    lines = dict[float, _Line]()
    for window in windows[wanted].tolist():
        lines.setdefault(window, _line(reports, target, age, weight, window))
    return list(lines.values())


def _kernel(age: Float64Array, window: float) -> Float64Array:
    kernel: Float64Array = np.maximum(0.0, 1.0 - age / window)
    return kernel


def _kish(weight: NDArray[Any]) -> float:
    squares = float((weight**2).sum())
    return float(weight.sum()) ** 2 / squares if squares else 0.0


def _line(reports: np.ndarray, target: Target, age: Float64Array, weight: Float64Array, window: float) -> _Line:
    kernel = _kernel(age, window)
    inside = kernel > 0.0
    kernel, age, weight, reports = kernel[inside], age[inside], weight[inside] * kernel[inside], reports[inside]
    _, step = np.unique(reports["step"], return_inverse=True)
    by_step = np.bincount(step, weight)
    num_reports, num_steps, covered = _kish(weight), _kish(by_step), _covered(reports, target, float(weight.sum()))
    if min(num_reports, num_steps) < 4.0:
        return _Line(0.0, 0.0, window, num_reports, num_steps, covered)
    excess, at = reports["excess_nats"], -age / window
    plain, _ = _fit(at, excess, weight, step)
    level, expected = expected_excess(
        reports["stratum"].astype(np.int64),
        kernel,
        excess - plain[1] * at,
        step,
        target.share,
        target.num_quantiles,
        target.prior_weight,
    )
    (nats, _), left_out = _fit(at, excess - expected, weight, step)
    spread = (left_out[:, 0] - nats) ** 2
    return _Line(
        level + float(nats),
        float(spread.sum()) * (len(left_out) - 1) / len(left_out),
        window,
        num_reports,
        num_steps,
        covered,
    )


def _covered(reports: np.ndarray, target: Target, total: float) -> float:
    """The share of the strata that have a report here, or of which one more would not weigh too much."""
    with np.errstate(divide="ignore", invalid="ignore"):
        is_covered = target.share / target.chance <= total / LEAST_REPORTS
    is_covered[reports["stratum"]] = True
    return float(target.share[is_covered].sum())


def _fit(
    at: Float64Array, value: Float64Array, weight: Float64Array, step: Int64Array
) -> tuple[Float64Array, Float64Array]:
    """The weighted line through (at, value): its value at 0 and its slope, float64 [2]; and without each step: [m, 2].

    Takes float64 [n], and the number of each report's step in [0, m).
    """
    sums = [np.bincount(step, weight * each) for each in (np.ones_like(at), at, at**2, value, at * value)]
    one, first, second, own, both = np.array([[each.sum() for each in sums], *np.transpose(sums)]).T
    # Without each step: all sums less that step's own. The first row is of all steps.
    one, first, second, own, both = (np.append(each[0], each[0] - each[1:]) for each in (one, first, second, own, both))
    ridge = _RIDGE * one[0]
    determinant = (one + ridge) * (second + ridge) - first**2
    level = ((second + ridge) * own - first * both) / determinant
    slope = ((one + ridge) * both - first * own) / determinant
    lines = np.stack([level, slope], axis=1)
    return lines[0], lines[1:]
