"""The injection ratio as a closed loop: hold forgetting at a budget with the least ratio.

Where the loop begins may come from the forgetting law (Bethune et al., "Scaling Laws for Forgetting during Finetuning
with Pretraining Data Injection", ICML 2025). The loop itself is this project's choice.
"""

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final, NamedTuple

from replay_service.sampling.bounds import check_bounds
from replay_service.sampling.forgetting import Forgetting
from replay_service.sampling.injection import Ratio, as_decimal, exact_ratio
from replay_service.sampling.response import HORIZON_HALF_LIVES, MOST_FALL, MOST_RISE

_GRAIN: Final = 10**6
"""Ratios that the controller sets are whole millionths."""

_MOST_EXPONENT: Final = 709.0
_DECISIONS_PER_HALF_LIFE: Final = 4
_LEAST_CHANGE: Final = 0.01
"""A ratio that is wanted to change by a smaller share stays: that would fill the journal and make no difference."""


@dataclass(frozen=True, slots=True)
class ForgettingLaw:
    """L_pt - L0_pt = A * D_ft ** beta / ((1 + B * p) * N) ** alpha (Bethune et al., 2025).

    Coefficients are fitted for each fine-tuning domain; this project ships none.

    Raises:
        ValueError: names what is out of range.
    """

    A: float = field(metadata={"description": "Fitted coefficient A; nats per token come out.", "gt": 0, "le": 1e300})
    B: float = field(metadata={"description": "Fitted coefficient B.", "gt": 0, "le": 1e300})
    alpha: float = field(metadata={"description": "Fitted exponent alpha.", "gt": 0, "le": 100})
    beta: float = field(metadata={"description": "Fitted exponent beta.", "gt": 0, "le": 100})
    num_parameters: float = field(metadata={"description": "N, parameters of the model.", "gt": 0, "le": 1e18})
    target_tokens: float = field(
        metadata={"description": "D_ft, unique tokens of the fine-tuning set.", "gt": 0, "le": 1e18}
    )

    def __post_init__(self) -> None:
        check_bounds(self, "law.")

    def forgetting(self, ratio: float) -> float:
        """What the law foretells at an injection ratio, nats per token."""
        return _exp(self._log_unscaled() - self.alpha * math.log((1.0 + self.B * ratio) * self.num_parameters))

    def least_ratio(self, budget_nats: float) -> float:
        """The least injection ratio by which it foretells at most `budget_nats`; it may be above 1."""
        diluted = _exp((self._log_unscaled() - math.log(budget_nats)) / self.alpha - math.log(self.num_parameters))
        return max(0.0, (diluted - 1.0) / self.B)

    def _log_unscaled(self) -> float:
        """The logarithm of A * D_ft ** beta, which by itself may be beyond what a float holds."""
        return math.log(self.A) + self.beta * math.log(self.target_tokens)


def _exp(exponent: float) -> float:
    """The exponential; infinite where it is beyond what a float holds."""
    return math.exp(exponent) if exponent < _MOST_EXPONENT else math.inf


@dataclass(frozen=True, slots=True)
class ForgettingBudget:
    """How much forgetting the controller of an `auto` injection ratio allows.

    Raises:
        ValueError: names what is out of range.
    """

    nats: float = field(
        default=0.05,
        metadata={"description": "The most forgetting of the whole corpus, nats per token.", "gt": 0, "le": 1e9},
    )
    first_ratio: Ratio = field(
        default="0.01", metadata={"description": "The ratio to begin with, in [0, 1], as a decimal."}
    )
    least_ratio: Ratio = field(
        default="0.001", metadata={"description": "The ratio never falls below this; above 0, as a decimal."}
    )
    most_ratio: Ratio = field(
        default="0.2", metadata={"description": "The ratio never rises above this, in [0, 1], as a decimal."}
    )
    every_steps: int = field(
        default=0,
        metadata={
            "description": "Steps between two decisions. 0: a quarter of the run's `half_life_steps`. More frequent "
            "decisions change less.",
            "ge": 0,
            "le": 1 << 47,
        },
    )
    law: ForgettingLaw | None = field(
        default=None,
        metadata={
            "description": "The forgetting law, fitted. It sets the ratio to begin with instead of `first_ratio`."
        },
    )

    def __post_init__(self) -> None:
        check_bounds(self, "budget.")
        least, first, most = (exact_ratio(each) for each in (self.least_ratio, self.first_ratio, self.most_ratio))
        if not 0 < least <= most or (self.law is None and not least <= first <= most):
            raise ValueError(
                f"budget.least_ratio, first_ratio and most_ratio must ascend from above 0, not {self.least_ratio}, "
                f"{self.first_ratio}, {self.most_ratio}: with nothing rehearsed nothing would be measured"
            )

    def start(self) -> str:
        """The ratio to begin with."""
        if self.law is None:
            return self.first_ratio
        return self.bounded(self.law.least_ratio(self.nats))

    def bounded(self, ratio: float, least: float = 0.0) -> str:
        """A ratio within the bounds, and above `least` where they allow it.

        It is rounded up to whole millionths, as a decimal string.
        """
        most, ratio = exact_ratio(self.most_ratio), max(ratio, least)
        wanted = most if ratio >= 1.0 else Fraction(math.ceil(ratio * _GRAIN), _GRAIN)
        if wanted >= most:
            return self.most_ratio
        if wanted <= exact_ratio(self.least_ratio):
            return self.least_ratio
        return as_decimal(wanted)


def decision_steps(every_steps: int, half_life_steps: float) -> int:
    """Steps between two decisions, where a budget says `every_steps`."""
    return every_steps or max(1, round(half_life_steps / _DECISIONS_PER_HALF_LIFE))


class Decision(NamedTuple):
    """Which injection ratio to take from now on, and why."""

    injection_ratio: str
    reason: str


def decide(
    budget: ForgettingBudget,
    ratio: Fraction,
    present: Forgetting,
    change: float,
    seeing_ratio: float,
    pace: float = 1.0,
    told_by: str = "first visits",
) -> Decision | None:
    """The controller's decision, or None when the ratio stays as it is.

    Args:
        budget: what is to be held.
        ratio: the injection ratio until now.
        present: forgetting at the latest step.
        change: the logarithm of the factor for the ratio by which the budget is expected to be met, as
            `change_of_ratio` gives it.
        seeing_ratio: the ratio at which there are reports enough for an estimate. Where there is none the ratio rises
            to it, and it does not fall below.
        pace: half-lives between two decisions, 1 at most.
        told_by: which visits the estimate is made of, for the reason.

    In a half-life the ratio changes by a factor within [0.4, 3].
    """
    if present.nats is None:
        chosen = budget.bounded(seeing_ratio)
        return Decision(chosen, f"forgetting is {present}") if exact_ratio(chosen) > ratio else None
    if abs(change) < _LEAST_CHANGE:
        return None
    factor = math.exp(min(pace * math.log(MOST_RISE), max(pace * math.log(MOST_FALL), change)))
    rises = factor > 1.0
    chosen = budget.bounded(float(ratio) * factor, 0.0 if rises else min(seeing_ratio, float(ratio)))
    if exact_ratio(chosen) == ratio or (exact_ratio(chosen) > ratio) != rises:
        return None
    return Decision(
        chosen,
        f"forgetting by {told_by}: {present}; to be at the budget of {budget.nats:g} nats in "
        f"{HORIZON_HALF_LIVES:g} half-lives, the ratio must {'rise' if rises else 'fall'} to about "
        f"{float(ratio) * math.exp(change):.3g}",
    )
