"""Two scaling laws, and their fit to runs (Bethune et al., "Scaling Laws for Forgetting during Finetuning with
Pretraining Data Injection", ICML 2025).

- Forgetting: L_pt - L0_pt = A * D_ft^beta / ((1 + B x) * N)^alpha.
- Target loss: L_ft = A' / (N^alpha' * D_ft^beta') + E + C x. The paper finds that L_ft hardly depends on p, and has no
  C. The term C x is this project's, so that the price of rehearsal is measured.

x is the injection ratio p times the weight of rehearsed rows; the paper has no weight. As in the paper a Huber loss of
differences of logarithms is minimized. This project takes the logarithm of the forgetting where the paper takes that of
L_pt: a budget asks for forgetting, and small forgetting counts little in L_pt.

Shapes: R runs, K coefficients, S starts.
"""

import itertools
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from scipy import optimize

from replay_service.planning.runs import Float64Array, Runs

_EXPONENTS: Final = (0.01, 5.0)
_FIXED_EXPONENT: Final = 0.5
_FORGETTING_DELTA: Final = 0.1
_TARGET_DELTA: Final = 0.01
"""Differences of logarithms above which the Huber loss grows linearly."""
_LARGE: Final = 50.0


class Law(Protocol):
    """A law with the runs that it is fitted to; coefficients are float64 [K], logarithms for factors."""

    @property
    def free(self) -> tuple[bool, ...]: ...

    @property
    def delta(self) -> float: ...

    def lower(self) -> Float64Array: ...

    def upper(self) -> Float64Array: ...

    def starts(self) -> list[Float64Array]: ...

    def differences(self, coefficients: Float64Array) -> Float64Array:
        """Logarithm of the law's value minus that of the measured one, [R]."""
        ...


def fit(law: Law, known: Float64Array | None = None) -> Float64Array:
    """The coefficients with the least Huber loss, [K], over the law's starts.

    Args:
        law: with its runs.
        known: coefficients of runs much like these. They are the only start where they are given, as in a bootstrap.
    """
    free, tolerance = np.array(law.free), 1e-8 if known is None else 1e-5
    lower, upper = law.lower()[free], law.upper()[free]
    best: tuple[float, Float64Array] = np.inf, np.empty(0)
    for start in law.starts() if known is None else [known]:
        whole = start.copy()

        def differences(values: Float64Array, whole: Float64Array = whole) -> Float64Array:
            whole[free] = values
            return law.differences(whole)

        first = np.clip(start[free], lower + 1e-6 * (upper - lower), upper - 1e-6 * (upper - lower))
        found = optimize.least_squares(
            differences,
            first,
            bounds=(lower, upper),
            loss="huber",
            f_scale=law.delta,
            x_scale="jac",
            ftol=tolerance,
            xtol=tolerance,
            gtol=tolerance,
            max_nfev=400,
        )
        if found.cost < best[0]:
            whole[free] = found.x
            best = float(found.cost), whole
    return best[1]


@dataclass(frozen=True, slots=True)
class ForgettingRuns:
    """The law of forgetting; coefficients are log a, log B, alpha, beta.

    `a` is the forgetting without rehearsal at the reference size and length, so that it hardly varies with the
    exponents: A = a * reference_size^alpha / reference_tokens^beta.

    Attributes:
        runs: what it is fitted to.
        free: which coefficients are fitted; others stay at 0.5 for exponents.
        reference_size: a size within those of the runs.
        reference_tokens: a length within those of the runs.
    """

    runs: Runs
    free: tuple[bool, ...]
    reference_size: float
    reference_tokens: float
    delta: float = _FORGETTING_DELTA

    def lower(self) -> Float64Array:
        return np.array([-_LARGE, np.log(1e-3 / self._largest()), _EXPONENTS[0], _EXPONENTS[0]])

    def upper(self) -> Float64Array:
        return np.array([_LARGE, np.log(1e5 / self._least()), _EXPONENTS[1], _EXPONENTS[1]])

    def starts(self) -> list[Float64Array]:
        """For each of some B over the whole range, the other coefficients by linear least squares."""
        lower, upper = self.lower(), self.upper()
        return [self._start(log_b) for log_b in np.linspace(lower[1], upper[1], 14)[1:-1]]

    def _start(self, log_b: float) -> Float64Array:
        runs = self.runs
        size, length = self._logs(runs)
        dilution = np.log1p(np.exp(log_b) * runs.weighted_ratio) + size
        columns = np.stack([np.ones(len(runs)), -dilution, length], axis=1)
        found = np.linalg.lstsq(columns, np.log(runs.forgetting), rcond=None)[0]
        alpha, beta = (
            float(np.clip(value, *_EXPONENTS)) if free else _FIXED_EXPONENT
            for value, free in zip(found[1:], self.free[2:], strict=True)
        )
        log_a = float(np.mean(np.log(runs.forgetting) + alpha * dilution - beta * length))
        return np.array([log_a, log_b, alpha, beta])

    def differences(self, coefficients: Float64Array) -> Float64Array:
        runs = self.runs
        size, length = self._logs(runs)
        return forgetting_log(coefficients, size, length, runs.weighted_ratio) - np.log(runs.forgetting)

    def _logs(self, runs: Runs) -> tuple[Float64Array, Float64Array]:
        return np.log(runs.num_parameters / self.reference_size), np.log(runs.target_tokens / self.reference_tokens)

    def _largest(self) -> float:
        return float(np.max(self.runs.weighted_ratio))

    def _least(self) -> float:
        ratios = self.runs.weighted_ratio
        return float(np.min(ratios[ratios > 0]))


def forgetting_log(
    coefficients: Float64Array, size: Float64Array, length: Float64Array, ratio: Float64Array
) -> Float64Array:
    """Logarithm of the forgetting by the law.

    Args:
        coefficients: [..., 4], as those of `ForgettingRuns`.
        size: logarithm of N over the reference size.
        length: logarithm of D_ft over the reference length.
        ratio: x, the weighted ratio.
    """
    log_a, log_b, alpha, beta = np.moveaxis(coefficients, -1, 0)
    found: Float64Array = log_a + beta * length - alpha * (np.log1p(np.exp(log_b) * ratio) + size)
    return found


@dataclass(frozen=True, slots=True)
class TargetRuns:
    """The law of the target loss; coefficients are log a', alpha', beta', E, C.

    a' is the reducible loss at the reference size and length: A' = a' * reference_size^alpha' * reference_tokens^beta'.
    Exponents that are not free, and E, stay at 0.
    """

    runs: Runs
    free: tuple[bool, ...]
    reference_size: float
    reference_tokens: float
    delta: float = _TARGET_DELTA

    def lower(self) -> Float64Array:
        return np.array([-_LARGE, _EXPONENTS[0], _EXPONENTS[0], 0.0, -self._steepest()])

    def upper(self) -> Float64Array:
        return np.array([_LARGE, _EXPONENTS[1], _EXPONENTS[1], float(np.min(self._losses())), self._steepest()])

    def starts(self) -> list[Float64Array]:
        """For some pairs of exponents the other coefficients by linear least squares; the best of them come first."""
        alphas, betas = ((0.05, 0.2, 0.5, 1.0) if free else (0.0,) for free in self.free[1:3])
        return [self._start(alpha, beta) for alpha, beta in itertools.product(alphas, betas)]

    def _start(self, alpha: float, beta: float) -> Float64Array:
        losses, ratio = self._losses(), self.runs.weighted_ratio
        power = np.exp(-alpha * self._size() - beta * self._length())
        columns = [power, ratio, *([np.ones(len(losses))] if self.free[3] else [])]
        found = np.linalg.lstsq(np.stack(columns, axis=1), losses, rcond=None)[0]
        floor = float(np.clip(found[2], 0.0, 0.99 * np.min(losses))) if self.free[3] else 0.0
        scale = max(1e-3, float(np.mean((losses - floor) / power)))
        return np.array([np.log(scale), alpha, beta, floor, found[1]])

    def differences(self, coefficients: Float64Array) -> Float64Array:
        found = target_loss(coefficients, self._size(), self._length(), self.runs.weighted_ratio)
        return np.log(np.maximum(found, 1e-9)) - np.log(self._losses())

    def _losses(self) -> Float64Array:
        assert self.runs.target_loss is not None
        return self.runs.target_loss

    def _size(self) -> Float64Array:
        return np.log(self.runs.num_parameters / self.reference_size)

    def _length(self) -> Float64Array:
        return np.log(self.runs.target_tokens / self.reference_tokens)

    def _steepest(self) -> float:
        return float(np.max(self._losses()) / np.max(self.runs.weighted_ratio))


def target_loss(
    coefficients: Float64Array, size: Float64Array, length: Float64Array, ratio: Float64Array
) -> Float64Array:
    """Target loss by the law, nats per token; arguments as those of `forgetting_log`, coefficients [..., 5]."""
    log_a, alpha, beta, floor, slope = np.moveaxis(coefficients, -1, 0)
    found: Float64Array = np.exp(log_a - alpha * size - beta * length) + floor + slope * ratio
    return found
