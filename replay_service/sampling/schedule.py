"""How the injection ratio runs over the steps of a job: constant, or along a curve.

Ratios are exact: a written decimal is the fraction that it says, and a curve's values are whole multiples of `GRAIN`,
so that every machine that folds a journal counts the same.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Final, Literal

from replay_service.sampling.bounds import check_bounds
from replay_service.sampling.injection import Ratio, exact_ratio

Curve = Literal["constant", "warmup", "linear", "cosine", "steps"]

CURVES_OF_A_LENGTH: Final = ("warmup", "linear", "cosine")

PointStep = Annotated[int, "a step from 1 on"]

GRAIN: Final = Fraction(1, 10**9)
"""What ratios between the ends of a curve are rounded down to."""

_COSINE_TERMS: Final = 14
"""Of the power series; on [0, pi / 2] the next one is below 1e-20."""


@dataclass(frozen=True)
class Schedule:
    """A curve of the injection ratio, by the step of the run.

    Raises:
        ValueError: names what is out of range.
    """

    curve: Curve = field(
        default="constant",
        metadata={
            "description": "`constant`: the run's ratio in all steps. `warmup`: from 0 up to it along a line. "
            "`linear`, `cosine`: from it to `final_ratio`. `steps`: the run's ratio, then those of `points`."
        },
    )
    num_steps: int = field(
        default=0,
        metadata={
            "description": "Length of `warmup`, `linear` and `cosine`, steps; a job that leaves it out means its own. "
            "Afterwards the curve's last value holds.",
            "ge": 0,
            "le": 1 << 48,
        },
    )
    final_ratio: Ratio = field(
        default="0", metadata={"description": "Where `linear` and `cosine` end, in [0, 1], as a decimal."}
    )
    points: tuple[tuple[PointStep, Ratio], ...] = field(
        default=(),
        metadata={
            "description": "With `steps`: pairs of a step and the ratio from that step on, in ascending order.",
            "examples": [[[1000, "0.02"]]],
            "max_length": 1000,
        },
    )

    def __post_init__(self) -> None:
        check_bounds(self, "schedule.")
        if (self.curve in CURVES_OF_A_LENGTH) != bool(self.num_steps):
            raise ValueError(
                f"schedule.num_steps is the length of warmup, linear and cosine, and of no other curve; it is "
                f"{self.num_steps} with {self.curve}"
            )
        if (self.curve == "steps") != bool(self.points):
            raise ValueError("schedule.points belong to the curve steps, which needs at least one")
        steps = [step for step, _ in self.points]
        if not all(1 <= step < 2**63 for step in steps) or steps != sorted(set(steps)):
            raise ValueError(f"schedule.points must have ascending steps from 1 on, not {steps}")
        exact_ratio(self.final_ratio)
        for _, ratio in self.points:
            exact_ratio(ratio)

    @cached_property
    def _ends(self) -> tuple[list[int], list[Fraction]]:
        return [step for step, _ in self.points], [exact_ratio(ratio) for _, ratio in self.points]

    def at(self, step: int, ratio: Fraction) -> Fraction:
        """The injection ratio of a step of a run whose own is `ratio`."""
        if self.curve == "constant":
            return ratio
        if self.curve == "steps":
            steps, ratios = self._ends
            passed = bisect_right(steps, step)
            return ratios[passed - 1] if passed else ratio
        done = min(Fraction(step, self.num_steps), Fraction(1))
        first, last = (Fraction(0), ratio) if self.curve == "warmup" else (ratio, exact_ratio(self.final_ratio))
        if done in (0, 1):
            return last if done else first
        if self.curve == "cosine":
            done = (1 - _half_cosine(done)) / 2
        return (first + (last - first) * done) // GRAIN * GRAIN

    def most(self, ratio: Fraction) -> Fraction:
        """The greatest ratio of any step."""
        if self.curve == "warmup":
            return ratio
        return max([ratio, *self._ends[1], *([exact_ratio(self.final_ratio)] if self.num_steps else [])])


def _half_cosine(share: Fraction) -> Fraction:
    """cos(pi * share) for a share in (0, 1), to some 1e-15, by arithmetic that is the same on every machine."""
    if share > Fraction(1, 2):
        return -_half_cosine(1 - share)
    angle = Fraction(3141592653589793238, 10**18) * share
    square = -(angle * angle).limit_denominator(10**18)
    total = term = Fraction(1)
    for i in range(1, _COSINE_TERMS):
        term = (term * square / ((2 * i - 1) * (2 * i))).limit_denominator(10**20)
        total += term
    return total.limit_denominator(10**18)
