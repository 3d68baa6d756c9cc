"""Predicted gains of drawing by damage, beside what studies measured.

A run predicts from its own reports what `mix_cd` is worth (`replay_service.sampling.predicted_gain`); a job's metrics
have it at their end. A study says what came of it on held-out text, against uniform draws with the same loss.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from replay_trainer.study.analysis import worst_domain
from replay_trainer.study.bootstrap import Interval
from replay_trainer.study.cells import Study
from replay_trainer.study.outcomes import Outcome
from replay_trainer.study.report import as_table

Float64Array = NDArray[np.float64]

UNIFORM: Final[Mapping[str, str]] = {
    "mix_cd excess, 5 %": "CE 5 %",
    "mix_cd excess ^2, 5 %": "CE 5 %",
    "recommended": "KL x3, 5 %",
    "recommended, worst": "KL x3, 5 %",
}
"""Arms that draw by excess loss, which is what the prediction is of, and the same without that."""


@dataclass(frozen=True, slots=True)
class Gain:
    """What one job predicted and what it measured, both as a share.

    Attributes:
        mean: by which mean forgetting falls.
        worst: by which ln(worst / mean) falls.
        uniform_log_ratio, log_ratio: ln(worst / mean) with uniform draws, and with this arm.
    """

    arm: str
    predicted_mean: Interval
    mean: float
    predicted_worst: Interval
    uniform_log_ratio: float
    log_ratio: float

    @property
    def worst(self) -> float:
        return 1.0 - self.log_ratio / self.uniform_log_ratio


def gains_of(studies: Iterable[Study], outcomes: Iterable[Outcome]) -> list[Gain]:
    """Of all cells of an arm that has a uniform counterpart on the same target with the same seed."""
    found = {(each.arm, each.target, each.seed): each for each in outcomes if each.failure is None}
    gains = []
    for study in studies:
        for cell in study.cells:
            mine = found.get((cell.arm, cell.target, cell.seed))
            uniform = found.get((UNIFORM.get(cell.arm, ""), cell.target, cell.seed))
            if mine is None or uniform is None:
                continue
            predicted = _predicted(study.folder / "cells" / cell.name / "metrics.jsonl")
            if predicted is not None:
                gains.append(_gain(mine, uniform, predicted))
    return gains


def _gain(mine: Outcome, uniform: Outcome, predicted: dict[str, Any]) -> Gain:
    mean, worst = (Interval(**predicted[name]) for name in ("mean_reduction", "worst_reduction"))
    mean_reduction = 1.0 - float(np.nanmean(mine.forgetting()) / np.nanmean(uniform.forgetting()))
    return Gain(mine.arm, mean, mean_reduction, worst, _log_ratio(uniform), _log_ratio(mine))


def _log_ratio(outcome: Outcome) -> float:
    forgetting = outcome.forgetting()
    return float(np.log(worst_domain(forgetting[None, None])[0, 0] / np.nanmean(forgetting)))


def _predicted(metrics: Path) -> dict[str, Any] | None:
    """What a job predicted at its end; None where it did not, or could not."""
    if not metrics.exists():
        return None
    found = [json.loads(line).get("predicted_gain") for line in metrics.read_text().splitlines()]
    told = [each for each in found if each is not None]
    return told[-1] if told and told[-1]["reason"] is None else None


def table(gains: Iterable[Gain]) -> str:
    """One row for each arm: medians over its jobs, and how often the sign was right."""
    all_gains = list(gains)
    rows = []
    for arm in UNIFORM:
        mine = [each for each in all_gains if each.arm == arm]
        if not mine:
            continue
        rows.append(
            [
                arm,
                str(len(mine)),
                *_compared([(each.predicted_mean, each.mean) for each in mine]),
                *_compared([(each.predicted_worst, each.worst) for each in mine]),
            ]
        )
    columns = ("predicted", "measured", "sign right")
    head = ("arm", "jobs", *(f"{what}: {each}" for what in ("mean", "worst") for each in columns))
    return as_table(head, rows) if rows else "No arm has enough cells yet."


def _compared(pairs: list[tuple[Interval, float]]) -> list[str]:
    predicted = np.array([each.value for each, _ in pairs])
    measured = np.array([each for _, each in pairs])
    right = int((np.sign(predicted) == np.sign(measured)).sum())
    spread = f" ({_share(measured.min())} to {_share(measured.max())})" if len(pairs) > 1 else ""
    return [f"{_share(np.median(predicted))} %", f"{_share(np.median(measured))} %{spread}", f"{right} of {len(pairs)}"]


def _share(share: np.floating[Any]) -> str:
    return f"{round(100 * share)}"


@dataclass(frozen=True, slots=True)
class Regression:
    """ln(worst / mean) of jobs on the factor by which the closed form shrinks it, within pairs of a target and a seed.

    Attributes:
        r_squared: the share of the variance within the pairs that the line explains.
        num_jobs: the uniform ones among them.
    """

    slope: float
    r_squared: float
    num_jobs: int


def regression(gains: Iterable[Gain]) -> Regression | None:
    """A line through the uniform job and the others of each pair, whose levels may differ; None for too few."""
    factors, ratios, num_jobs = list[float](), list[float](), 0
    pairs: dict[float, list[Gain]] = {}
    for each in gains:
        pairs.setdefault(each.uniform_log_ratio, []).append(each)
    for level, mine in pairs.items():
        factor = np.array([1.0, *(1.0 - each.predicted_worst.value for each in mine)])
        ratio = np.array([level, *(each.log_ratio for each in mine)])
        factors += (factor - factor.mean()).tolist()
        ratios += (ratio - ratio.mean()).tolist()
        num_jobs += len(factor)
    x, y = np.array(factors), np.array(ratios)
    if len(pairs) < 2 or not x.any():
        return None
    slope = float(x @ y / (x @ x))
    return Regression(slope, 1.0 - float(((y - slope * x) ** 2).sum() / (y @ y)), num_jobs)


def in_words(gains: Iterable[Gain]) -> str:
    """The table, and the line through its jobs."""
    all_gains = list(gains)
    line = regression(all_gains)
    if line is None:
        return table(all_gains)
    told = (
        "A line of ln(worst / mean) on 1 / (1 + e * sharpness), within pairs of a target and a seed: slope "
        f"{line.slope:.2f}, R^2 {line.r_squared:.2f}, {line.num_jobs} jobs."
    )
    return f"{table(all_gains)}\n\n{told}"
