from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from replay_service.sampling.latest import REPORT_ROW
from replay_service.sampling.lines import LEAST_FITTED, LEAST_REPORTS, WANTED_REPORTS, Line, Part, lines_of

Float64Array = NDArray[np.float64]

HALF_LIFE = 40.0
PRIOR = 8.0
SHARE = np.array([[0.3, 0.2], [0.15, 0.25], [0.1, 0.0]])


class Reports(NamedTuple):
    """Of one part, as the formulas name them; each [n]."""

    age: Float64Array
    stratum: NDArray[np.int64]
    weight: Float64Array
    excess: Float64Array


def part_of(seed: int, num: int, per_step: int) -> Part:
    """Reports that came unevenly, of strata that are drawn neither in proportion nor all of them."""
    random = np.random.default_rng(seed)
    chance = np.array([[0.5, 0.1], [0.1, 0.2], [0.001, 0.0]])
    stratum = random.choice(5, num, p=[0.5, 0.1, 0.15, 0.25, 0.0])
    reports = np.zeros(num, dtype=REPORT_ROW)
    reports["step"], reports["stratum"] = random.permutation(np.arange(num) // per_step), stratum
    reports["chance"] = chance.ravel()[stratum] * random.uniform(0.5, 1.5, num)
    reports["excess_nats"] = 0.01 * reports["step"] + 0.2 * stratum + 0.3 * random.standard_normal(num)
    return Part(reports, stratum, SHARE, chance)


def reports_of(part: Part, step: int) -> Reports:
    age = (step - part.reports["step"]).astype(np.float64)
    weight = part.share.ravel()[part.stratum] / part.reports["chance"]
    return Reports(age, part.stratum, weight, part.reports["excess_nats"])


def effective(weight: Float64Array) -> float:
    return float(weight.sum() ** 2 / (weight**2).sum())


def windows_of(reports: Reports) -> list[float]:
    """The shortest that hold 60 effective reports and some shares of so many; the longest where none does."""
    longest = max(8.0, min(3 * HALF_LIFE, 2 * reports.age.max() + 2))
    lengths = [min(8.0 * 2 ** (i / 2), longest) for i in range(20)]
    held = [effective(reports.weight * np.maximum(0.0, 1 - reports.age / each)) for each in lengths]
    wanted = [part * WANTED_REPORTS for part in (1.0, 0.45, 0.3, 0.2)]
    found = [next((lengths[i] for i in range(20) if held[i] >= each), longest) for each in wanted]
    return list(dict.fromkeys(found))


def means_of(weight: Float64Array, stratum: NDArray[np.int64], excess: Float64Array) -> Float64Array:
    """Of each stratum: its own reports lean on domain mean + quantile mean - overall mean."""

    def shrunk(mine: NDArray[np.bool_], prior: float) -> float:
        return float((PRIOR * prior + weight[mine] @ excess[mine]) / (PRIOR + weight[mine].sum()))

    level = float(weight @ excess / weight.sum())
    domains = [shrunk(stratum // 2 == domain, level) for domain in range(3)]
    quantiles = [shrunk(stratum % 2 == quantile, level) for quantile in range(2)]
    return np.array([shrunk(stratum == k, domains[k // 2] + quantiles[k % 2] - level) for k in range(6)])


def line_by_hand(part: Part, step: int, window: float) -> Line:
    """What `Line` says of a window, report by report."""
    reports = reports_of(part, step)
    kernel = 1 - reports.age / window
    inside = kernel > 0
    age, stratum, weight, excess = (each[inside] for each in reports)
    kernel, weight, at = kernel[inside], weight * kernel[inside], -age / window
    steps = np.unique(age)

    def fit(value: Float64Array, used: NDArray[np.bool_]) -> tuple[float, float]:
        slope, end = np.polyfit(at[used], value[used], 1, w=np.sqrt(weight[used]))
        return float(slope), float(end)

    every = np.ones(len(age), dtype=bool)
    flat = excess - fit(excess, every)[0] * at
    expected = np.zeros(len(age))
    for own in steps:
        others = age != own
        expected[~others] = means_of(kernel[others], stratum[others], flat[others])[stratum[~others]]
    rest = excess - expected
    end = fit(rest, every)[1]
    squares = sum((fit(rest, age != own)[1] - end) ** 2 for own in steps)
    is_told = np.isin(np.arange(6), stratum) | (SHARE.ravel() <= weight.sum() / LEAST_REPORTS * part.chance.ravel())
    return Line(
        nats=float(SHARE.ravel() @ means_of(kernel, stratum, flat)) + end,
        variance=float(squares) * (len(steps) - 1) / len(steps),
        window=window,
        num_reports=effective(weight),
        num_steps=effective(np.array([weight[age == own].sum() for own in steps])),
        covered=float(SHARE.ravel() @ is_told),
    )


def same(found: Sequence[Line], expected: Sequence[Line]) -> bool:
    return len(found) == len(expected) and all(
        tuple(one) == pytest.approx(tuple(other), rel=1e-6)
        for one, other in zip(map(values_of, found), map(values_of, expected), strict=True)
    )


def values_of(line: Line) -> list[float]:
    return [getattr(line, name) for name in Line.__slots__]


@pytest.mark.parametrize(("num", "per_step"), [(500, 5), (90, 2), (30, 1)])
def test_the_lines_of_a_part_are_those_that_the_formulas_give_report_by_report(num: int, per_step: int) -> None:
    parts = [part_of(seed, num, per_step) for seed in range(3)]
    step = num // per_step + 2
    for part, found in zip(parts, lines_of(parts, step, HALF_LIFE, PRIOR), strict=True):
        windows = windows_of(reports_of(part, step))
        assert [each.window for each in found] == pytest.approx(windows)
        fitted = [each for each in found if min(each.num_reports, each.num_steps) >= LEAST_FITTED]
        assert len(fitted) > 0
        assert same(fitted, [line_by_hand(part, step, each.window) for each in fitted])
