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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.lines import LEAST_FITTED, LEAST_REPORTS, Line, Part, lines_of

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

LEVEL: Final = 0.95
LEAST_COVERED: Final = 0.9
"""The share of the mass that an estimate must cover."""
_BEND: Final = 1.5
"""How much of the squared difference between windows, beyond its noise, is added to the squared error."""
_NORMAL: Final = 1.959963984540054
"""The two-sided 95 % point of the normal distribution."""


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
class FirstVisits:
    """What a run knows of its corpus by first visits; it does not change while the run goes on.

    Attributes:
        reports: REPORT_ROW [n], the latest first visits.
        step: the latest step that was reported.
        sizes: int64 [num_strata], samples of each stratum.
        chance: float64 [num_strata], the probability that a single draw is a first visit of the stratum now.
        num_quantiles: strata of a domain.
        half_life: steps; the longest window of an estimate is three of them.
        prior_weight: how many reports the prior of a stratum's mean is worth.
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
        return self.of_corpus_and(())[0]

    def of_domains(self) -> list[Forgetting]:
        """The forgetting of each domain."""
        return self.of_all()[1:]

    def of_all(self) -> list[Forgetting]:
        """The forgetting of the whole corpus, and of each domain."""
        return self.of_corpus_and(range(len(self.sizes) // self.num_quantiles))

    def of_corpus_and(self, domains: Sequence[int]) -> list[Forgetting]:
        """The forgetting of the whole corpus, and of some domains by their numbers; together they take less time."""
        parts = [self._corpus(), *self._domains(domains)]
        is_told = [bool(len(each.reports) and each.share.any()) for each in parts]
        told = [each for each, known in zip(parts, is_told, strict=True) if known]
        found = iter(estimates(told, self.step, self.half_life, self.prior_weight))
        return [next(found) if known else _NOTHING_REPORTED for known in is_told]

    def _corpus(self) -> Part:
        return self._part(self.reports, slice(None))

    def _domains(self, chosen: Sequence[int]) -> Iterator[Part]:
        of_report = self.reports["stratum"] // self.num_quantiles
        order = np.argsort(of_report, kind="stable")
        begins, ends = (np.searchsorted(of_report, chosen, side, order).tolist() for side in ("left", "right"))
        for domain, begin, end in zip(chosen, begins, ends, strict=True):
            yield self._part(self.reports[order[begin:end]], slice(domain, domain + 1))

    def _part(self, reports: np.ndarray, domains: slice) -> Part:
        """Some domains, with their reports."""
        sizes = self.sizes.reshape(-1, self.num_quantiles)[domains]
        chance = self.chance.reshape(-1, self.num_quantiles)[domains]
        stratum = reports["stratum"].astype(np.int64) - (domains.start or 0) * self.num_quantiles
        return Part(reports, stratum, sizes / max(1, sizes.sum()), chance)

    def since(self, step: int) -> "FirstVisits":
        """Those of `step` and later ones."""
        return replace(self, reports=self.reports[self.reports["step"] >= step])


def estimates(parts: Sequence[Part], step: int, half_life: float, prior_weight: float) -> list[Forgetting]:
    """The forgetting of each part at `step`, from first visits.

    Args:
        parts: each with a report at least, and a sample.
        step: the latest step that was reported.
        half_life: steps; the longest window is three of them.
        prior_weight: how many reports the prior of a stratum's mean is worth.

    With w_i = kernel(age_i) * share / chance of report i, m the means that other steps' reports lead to expect, and a
    the value at `step` of the weighted line through (step_i, e_i - m_i): `sum_k share_k * m_k + a`. The kernel falls
    from one to zero over the window, which is as long as it takes for 60 effective reports, from 8 steps to three
    half-lives.
    """
    return [_estimate(each, step) for each in lines_of(parts, step, half_life, prior_weight)] if parts else []


def _estimate(lines: Sequence[Line], step: int) -> Forgetting:
    """From the lines of the window and of shorter ones."""
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


def _reason(line: Line, steps: int) -> str | None:
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


def _bend(line: Line, shorter: Line) -> float:
    """By how much the square of what two windows differ by is more than noise alone would make it."""
    if shorter.window >= line.window or min(shorter.num_reports, shorter.num_steps) < LEAST_FITTED:
        return 0.0
    noise = max(shorter.variance - line.variance, 0.1 * line.variance)
    return (line.nats - shorter.nats) ** 2 - noise
