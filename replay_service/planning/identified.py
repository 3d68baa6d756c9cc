"""Which coefficients runs can tell, and which they cannot."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from replay_service.errors import UnusableRuns
from replay_service.planning.laws import ForgettingRuns, TargetRuns
from replay_service.planning.runs import Runs, num_levels

RATIO_FACTOR: Final = 1.1
SIZE_FACTOR: Final = 1.5
_COLLINEAR: Final = 0.99
_SPARE_RUNS: Final = 2


@dataclass(frozen=True, slots=True)
class Levels:
    """How many values of each variable the runs tell apart: ratios by a factor of 1.1, sizes and lengths by 1.5.

    A study's lengths differ a little with the ratio, since rehearsed rows take the place of target rows. That says
    nothing of beta.

    Attributes:
        is_collinear: larger models were trained longer, in proportion on the logarithmic scale.
    """

    num_ratios: int
    num_sizes: int
    num_lengths: int
    is_collinear: bool

    @classmethod
    def of(cls, runs: Runs) -> "Levels":
        sizes, lengths = (num_levels(each, SIZE_FACTOR) for each in (runs.num_parameters, runs.target_tokens))
        is_collinear = False
        if sizes > 1 and lengths > 1:
            logs = np.log(runs.num_parameters), np.log(runs.target_tokens)
            is_collinear = bool(abs(np.corrcoef(*logs)[0, 1]) > _COLLINEAR)
        return cls(num_levels(runs.weighted_ratio, RATIO_FACTOR), sizes, lengths, is_collinear)


def forgetting_runs(runs: Runs) -> ForgettingRuns:
    """The law of forgetting, with the coefficients free that the runs can tell.

    Raises:
        UnusableRuns: when the ratio's effect cannot be told, or there are too few runs for an interval.
    """
    levels = Levels.of(runs)
    if levels.num_ratios < 2:
        ratio = float(np.median(runs.weighted_ratio))
        raise UnusableRuns(
            f"all runs have about the same weighted injection ratio, {ratio:g}, so nothing tells what another does; "
            "add runs at a second ratio, 0 for instance"
        )
    alpha = levels.num_ratios > 2 or levels.num_sizes > 1
    beta = levels.num_lengths > 1 and not (levels.is_collinear and levels.num_ratios < 3)
    law = ForgettingRuns(runs, (True, True, alpha, beta), *_references(runs))
    _check_number(runs, sum(law.free), "forgetting")
    return law


def target_runs(runs: Runs) -> TargetRuns | None:
    """The law of the target loss likewise; None where that loss was not measured, or there are too few runs."""
    if runs.target_loss is None:
        return None
    levels = Levels.of(runs)
    alpha = levels.num_sizes > 1 and not levels.is_collinear
    beta = levels.num_lengths > 1
    floor = max(levels.num_sizes if alpha else 1, levels.num_lengths) >= 3
    free = (True, alpha, beta, floor, True)
    return TargetRuns(runs, free, *_references(runs)) if len(runs) >= sum(free) + _SPARE_RUNS else None


def remarks(law: ForgettingRuns) -> list[str]:
    """Sentences on what the runs cannot tell, and what was done about it."""
    levels, (_, _, alpha, beta) = Levels.of(law.runs), law.free
    found = []
    if levels.num_sizes == 1:
        found.append(
            "The runs have one model size. A holds for it alone, and the law foretells nothing of other sizes; for "
            "that, add runs of other sizes."
        )
    if not alpha:
        found.append(
            "With one model size and two ratios, alpha and B cannot be told apart. alpha is fixed at 0.5, and ratios "
            "between the two are an interpolation; add runs at a third ratio."
        )
    elif levels.num_sizes == 1:
        found.append("alpha is told by the ratios alone.")
    if levels.num_lengths == 1:
        found.append(
            "The runs have one length. beta cannot be told and is fixed at 0.5; the law foretells nothing of other "
            "lengths."
        )
    elif not beta:
        found.append(
            "Larger models were trained longer in proportion, so alpha and beta cannot be told apart. beta is fixed at "
            "0.5; vary the length at one size."
        )
    if not np.any(law.runs.weighted_ratio == 0):
        found.append("No run is without rehearsal, so B leans on the shape of the law; add runs at ratio 0.")
    return found


def _references(runs: Runs) -> tuple[float, float]:
    """Geometric means of the sizes and lengths."""
    return tuple(float(np.exp(np.mean(np.log(each)))) for each in (runs.num_parameters, runs.target_tokens))  # type: ignore[return-value]


def _check_number(runs: Runs, num_coefficients: int, what: str) -> None:
    least = num_coefficients + _SPARE_RUNS
    if len(runs) < least:
        raise UnusableRuns(
            f"{len(runs)} runs are too few for the {num_coefficients} coefficients of the law of {what} and an "
            f"interval; give at least {least}"
        )
