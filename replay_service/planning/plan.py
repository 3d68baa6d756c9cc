"""A plan: both laws fitted, and the injection ratio that keeps forgetting within a budget.

Shapes: R runs, B resamples. Index 0 of B + 1 is the fit itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from replay_service.errors import UnusableRuns
from replay_service.planning.bootstrap import Interval, draws_of, resamples
from replay_service.planning.identified import SIZE_FACTOR, forgetting_runs, target_runs
from replay_service.planning.laws import ForgettingRuns, TargetRuns, forgetting_log, target_loss
from replay_service.planning.runs import Float64Array, Runs, num_levels
from replay_service.planning.settings import PlanSettings
from replay_service.sampling.controller import ForgettingLaw


@dataclass(frozen=True, slots=True)
class ForgettingFit:
    """The law of forgetting, fitted.

    Attributes:
        law: with its runs.
        draws: coefficients, float64 [B + 1, 4].
    """

    law: ForgettingRuns
    draws: Float64Array

    def coefficients(self) -> dict[str, Interval]:
        """A, B, alpha and beta as the paper has them."""
        log_a, log_b, alpha, beta = self.draws.T
        log_a = log_a + alpha * np.log(self.law.reference_size) - beta * np.log(self.law.reference_tokens)
        columns = {"A": _exp(log_a), "B": _exp(log_b), "alpha": alpha, "beta": beta}
        return {name: Interval.of(values) for name, values in columns.items()}

    def forgetting(self, size: float, tokens: float, ratio: Float64Array | float) -> Float64Array:
        """Forgetting by each draw, nats per token; `ratio` is weighted, one value or [B + 1]."""
        return _exp(forgetting_log(self.draws, *self._logs(size, tokens), np.asarray(ratio, dtype=np.float64)))

    def least_ratio(self, size: float, tokens: float, budget_nats: float) -> Float64Array:
        """The least weighted ratio within the budget by each draw, [B + 1]; it may be above 1."""
        log_a, log_b, alpha, beta = self.draws.T
        log_size, length = self._logs(size, tokens)
        dilution = (log_a + beta * length - np.log(budget_nats)) / alpha - log_size
        found: Float64Array = np.maximum(0.0, (_exp(dilution) - 1.0) * np.exp(-log_b))
        return found

    def relative_errors(self) -> tuple[float, float]:
        """Mean relative error over the runs: of forgetting, and of L_pt, which is the paper's measure."""
        return relative_errors(self.law.runs, np.exp(self.law.differences(self.draws[0])) * self.law.runs.forgetting)

    def for_controller(self, size: float, tokens: float, weight: float) -> ForgettingLaw:
        """The law as `rehearsal.budget.law` takes it, of the ratio of a job with this rehearsal weight."""
        found = {name: each.value for name, each in self.coefficients().items()}
        found["B"] *= weight
        return ForgettingLaw(**found, num_parameters=size, target_tokens=tokens)

    def _logs(self, size: float, tokens: float) -> tuple[Float64Array, Float64Array]:
        return np.log(np.array(size / self.law.reference_size)), np.log(np.array(tokens / self.law.reference_tokens))


@dataclass(frozen=True, slots=True)
class TargetFit:
    """The law of the target loss, fitted; `draws` are float64 [B + 1, 5]."""

    law: TargetRuns
    draws: Float64Array

    def coefficients(self) -> dict[str, Interval]:
        """A', alpha', beta', E and C; those that the runs cannot tell are left out."""
        log_a, alpha, beta, floor, slope = self.draws.T
        log_a = log_a + alpha * np.log(self.law.reference_size) + beta * np.log(self.law.reference_tokens)
        columns = {"A'": _exp(log_a), "alpha'": alpha, "beta'": beta, "E": floor, "C": slope}
        return {
            name: Interval.of(values)
            for (name, values), is_free in zip(columns.items(), self.law.free, strict=True)
            if is_free
        }

    def loss(self, size: float, tokens: float | Float64Array, ratio: Float64Array | float) -> Float64Array:
        """Target loss by each draw, nats per token."""
        log_size = np.log(np.array(size / self.law.reference_size))
        length = np.log(np.asarray(tokens, dtype=np.float64) / self.law.reference_tokens)
        return target_loss(self.draws, log_size, length, np.asarray(ratio, dtype=np.float64))

    def relative_error(self) -> float:
        """Mean relative error of L_ft over the runs."""
        return float(np.mean(np.abs(np.expm1(self.law.differences(self.draws[0])))))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a user asks for.

    Attributes:
        settings: with sizes and lengths filled in.
        forgetting: the law of forgetting.
        target: the law of the target loss, or None.
        ratio: the least injection ratio within the budget, of a job with the settings' rehearsal weight. 0 where none
            is needed; above 1 where no ratio is enough.
        forgotten: forgetting without rehearsal, nats per token.
        price: how much higher the target loss is at that ratio than without rehearsal, for as many target tokens; None
            where the target loss is not known or no ratio is enough.
        price_of_tokens: the same, for as many tokens in all: rehearsed rows take the place of target rows.
    """

    settings: PlanSettings
    num_parameters: float
    target_tokens: float
    forgetting: ForgettingFit
    target: TargetFit | None
    ratio: Interval
    forgotten: Interval
    price: Interval | None
    price_of_tokens: Interval | None


def make_plan(runs: Runs, settings: PlanSettings, progress: Callable[[], None] = lambda: None) -> Plan:
    """Fit both laws, and derive the ratio; `progress` is called after each of the bootstrap's fits.

    Raises:
        UnusableRuns: when the runs cannot tell what is asked for.
    """
    law, target_law = forgetting_runs(runs), target_runs(runs)
    _asked_of(runs, settings)
    indexes = list(resamples(runs, settings.num_resamples, settings.seed))
    forgetting = ForgettingFit(law, draws_of(law, indexes, progress))
    target = TargetFit(target_law, draws_of(target_law, indexes, progress)) if target_law is not None else None
    return planned(forgetting, target, settings)


def planned(forgetting: ForgettingFit, target: TargetFit | None, settings: PlanSettings) -> Plan:
    """What follows from the fitted laws; the draws of both must be of the same resamples.

    Raises:
        UnusableRuns: when the runs say nothing of the size or length that is asked for.
    """
    size, tokens = _asked_of(forgetting.law.runs, settings)
    weighted = forgetting.least_ratio(size, tokens, settings.budget_nats)
    ratio = weighted / settings.rehearsal_weight
    price, by_tokens = _prices(target, size, tokens, weighted, ratio) if target and ratio[0] < 1 else (None, None)
    forgotten = Interval.of(forgetting.forgetting(size, tokens, 0.0))
    return Plan(settings, size, tokens, forgetting, target, Interval.of(ratio), forgotten, price, by_tokens)


def _asked_of(runs: Runs, settings: PlanSettings) -> tuple[float, float]:
    """The size and the length to plan for."""
    size = _asked(settings.num_parameters, runs.num_parameters, "--num-parameters")
    return size, _asked(settings.target_tokens, runs.target_tokens, "--target-tokens")


def num_fits(runs: Runs, settings: PlanSettings) -> int:
    """How often `make_plan` calls its `progress`."""
    return settings.num_resamples * (1 if target_runs(runs) is None else 2)


def relative_errors(runs: Runs, foretold: Float64Array) -> tuple[float, float]:
    """Mean relative error of foretold forgetting [R], and of L_pt."""
    wrong = np.abs(foretold - runs.forgetting)
    return float(np.mean(wrong / runs.forgetting)), float(np.mean(wrong / runs.pretraining_loss))


def _prices(
    target: TargetFit, size: float, tokens: float, weighted: Float64Array, ratio: Float64Array
) -> tuple[Interval, Interval | None]:
    """At the estimated ratio, so that the intervals are of the law's effect alone."""
    without = target.loss(size, tokens, 0.0)
    price = Interval.of(target.loss(size, tokens, weighted[0]) - without)
    if not target.law.free[2]:
        return price, None
    return price, Interval.of(target.loss(size, tokens * (1 - ratio[0]), weighted[0]) - without)


def _asked(asked: float | None, values: Float64Array, option: str) -> float:
    """A size or length to plan for; that of the runs where they have one alone."""
    most = float(np.max(values))
    if asked is None:
        return most
    if num_levels(np.append(values, asked), SIZE_FACTOR) > num_levels(values, SIZE_FACTOR) == 1:
        raise UnusableRuns(
            f"all runs have about {most:,.0f} where {option} asks for {asked:,.0f}; nothing tells how forgetting "
            f"changes with it, so leave {option} out or add runs of other values"
        )
    return asked


def _exp(logarithm: Float64Array) -> Float64Array:
    """The exponential; infinite where it is beyond what a float holds."""
    with np.errstate(over="ignore"):
        return np.exp(logarithm)
