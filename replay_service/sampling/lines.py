"""Lines through the reports of windows that end now: what estimates of forgetting are made of.

All windows of all parts of a corpus are looked at together: to call numpy takes most of the time, and a corpus of many
domains has hundreds of windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.expected import Strata, expected_excess

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

LEAST_REPORTS: Final = 6.0
"""Effective reports, and effective steps, that an estimate takes."""
LEAST_FITTED: Final = 4.0
"""As many as a line takes at least."""
WINDOW_HALF_LIVES: Final = 3.0
"""The longest window. Its reports are a third of it old on average, one half-life."""
LEAST_WINDOW_STEPS: Final = 8.0

WANTED_REPORTS: Final = 60.0
"""Effective reports of a window, if it need not be longer than three half-lives for them."""
_COMPARED: Final = (1.0, 0.45, 0.3, 0.2)
"""Of so many times as many are the window and the shorter ones that it is compared with."""
_RIDGE: Final = 1e-10


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a corpus: some of its domains, with the reports of their samples.

    Attributes:
        reports: REPORT_ROW [n], at least one, in any order.
        stratum: int64 [n], of each report, numbered within the part.
        share: float64 [num_domains, num_quantiles], the mass of each stratum, adding up to one.
        chance: float64 [num_domains, num_quantiles], the probability that a single draw is a first visit of it now.
    """

    reports: np.ndarray
    stratum: Int64Array
    share: Float64Array
    chance: Float64Array


@dataclass(frozen=True, slots=True)
class Line:
    """The line through the reports of a window, at its end.

    Attributes:
        nats: its value there; 0 where the reports or the steps are worth less than LEAST_FITTED.
        variance: of that value, by leaving out one step after the other.
        window: steps.
        num_reports, num_steps: effective ones.
        covered: the share of the mass that the reports tell of.
    """

    nats: float
    variance: float
    window: float
    num_reports: float
    num_steps: float
    covered: float


def lines_of(parts: Sequence[Part], step: int, half_life: float, prior_weight: float) -> list[list[Line]]:
    """Of each part, the line of its window, and those of the shorter windows that it is compared with.

    Args:
        parts: at least one.
        step: the latest step that was reported.
        half_life: steps; the longest window is three of them.
        prior_weight: how many reports the prior of a stratum's mean is worth.
    """
    told = _Told.of(parts, step)
    windows = _windows(told, half_life)
    lines = iter(_lines(_Inside.of(parts, told, windows), prior_weight))
    return [[next(lines) for _ in each] for each in windows]


@dataclass(frozen=True, slots=True)
class _Told:
    """The columns of the reports of all parts, one part after the other, [n].

    Attributes:
        ends: int64 [num_parts + 1], where the parts' reports begin and end.
        part: int64, the number of each report's part.
        age: float64, steps.
        step: int64, from 0.
        stratum: int64, numbered within the part.
        weight: float64, how much of its part each report stands for, whatever its age.
        excess: float64, nats per token.
    """

    ends: Int64Array
    part: Int64Array
    age: Float64Array
    step: Int64Array
    stratum: Int64Array
    weight: Float64Array
    excess: Float64Array

    @classmethod
    def of(cls, parts: Sequence[Part], step: int) -> "_Told":
        nums = [len(each.reports) for each in parts]
        reports = np.concatenate([each.reports for each in parts])
        share = np.concatenate([each.share.ravel()[each.stratum] for each in parts])
        steps = reports["step"] - reports["step"].min()
        return cls(
            ends=np.cumsum([0, *nums]),
            part=np.repeat(np.arange(len(parts)), nums),
            age=(step - reports["step"]).astype(np.float64),
            step=steps,
            stratum=np.concatenate([each.stratum for each in parts]),
            weight=share / reports["chance"],
            excess=np.ascontiguousarray(reports["excess_nats"]),
        )


def _windows(told: _Told, half_life: float) -> list[list[float]]:
    """Of each part, the length of its window and of the shorter ones, in steps.

    Lengths grow by the square root of two, up to one that holds the reports that are wanted, or to the longest.
    """
    oldest = np.maximum.reduceat(told.age, told.ends[:-1])
    longest = np.maximum(LEAST_WINDOW_STEPS, np.minimum(WINDOW_HALF_LIVES * half_life, 2.0 * oldest + 2.0))
    windows, effective = list[Float64Array](), list[Float64Array]()
    is_done = np.zeros(len(longest), dtype=bool)
    while not is_done.all():
        window = np.minimum(LEAST_WINDOW_STEPS * 2.0 ** (0.5 * len(windows)), longest)
        windows.append(window)
        weight = told.weight * np.maximum(0.0, 1.0 - told.age / window[told.part])
        effective.append(_kish(told.part, weight, len(longest)))
        is_done |= (effective[-1] >= WANTED_REPORTS) | (window == longest)
    enough = np.stack(effective) >= WANTED_REPORTS * np.array(_COMPARED)[:, None, None]
    chosen = np.where(enough.any(axis=1), enough.argmax(axis=1), len(windows) - 1)
    lengths = np.take_along_axis(np.stack(windows), chosen, axis=0)
    return [list(dict.fromkeys(each)) for each in lengths.T.tolist()]


def _kish(key: Int64Array, weight: Float64Array, num: int) -> Float64Array:
    """Effective reports of each key below `num`: the square of the sum of the weights over the sum of their squares."""
    total, squares = np.bincount(key, weight, num), np.bincount(key, weight**2, num)
    return np.divide(total**2, squares, out=np.zeros(num), where=squares > 0.0)


@dataclass(frozen=True, slots=True)
class _Inside:
    """The reports inside each of several windows, one window after the other, [n].

    Attributes:
        window: float64 [num_windows], their lengths.
        strata: those of each window; a set for each.
        chance: float64 [num_rows, num_quantiles], as in `Part`.
        owner: int64, the number of each report's window.
        step: int64, of the step among those that have reports, numbered through all windows.
        owner_of_step: int64 [num_steps].
        stratum: int64, numbered through all windows.
        kernel, at, weight, excess: float64.
    """

    window: Float64Array
    strata: Strata
    chance: Float64Array
    owner: Int64Array
    step: Int64Array
    owner_of_step: Int64Array
    stratum: Int64Array
    kernel: Float64Array
    at: Float64Array
    weight: Float64Array
    excess: Float64Array

    @classmethod
    def of(cls, parts: Sequence[Part], told: _Told, windows: Sequence[Sequence[float]]) -> "_Inside":
        of_part = [part for part, each in enumerate(windows) for _ in each]
        lengths = [window for each in windows for window in each]
        kernels = [
            1.0 - told.age[slice(*told.ends[part : part + 2])] / window
            for part, window in zip(of_part, lengths, strict=True)
        ]
        places = [np.flatnonzero(each > 0.0) for each in kernels]
        kernel = np.concatenate([each[place] for each, place in zip(kernels, places, strict=True)])
        place = np.concatenate([told.ends[part] + each for part, each in zip(of_part, places, strict=True)])
        owner = np.repeat(np.arange(len(lengths)), [len(each) for each in places])
        num_rows = [len(parts[part].share) for part in of_part]
        share, chance = (
            np.concatenate([getattr(parts[part], name) for part in of_part]) for name in ("share", "chance")
        )
        first_stratum = share.shape[1] * np.cumsum([0, *num_rows[:-1]])
        num_steps = int(told.step.max()) + 1
        steps, step = np.unique(owner * num_steps + told.step[place], return_inverse=True)
        window = np.array(lengths)
        return cls(
            window=window,
            strata=Strata(share, np.repeat(np.arange(len(lengths)), num_rows)),
            chance=chance,
            owner=owner,
            step=step,
            owner_of_step=steps // num_steps,
            stratum=first_stratum[owner] + told.stratum[place],
            kernel=kernel,
            at=-told.age[place] / window[owner],
            weight=told.weight[place] * kernel,
            excess=told.excess[place],
        )

    def num_reports(self) -> Float64Array:
        return _kish(self.owner, self.weight, len(self.window))

    def num_steps(self) -> Float64Array:
        of_step = np.bincount(self.step, self.weight)
        return _kish(self.owner_of_step, of_step.astype(np.float64, copy=False), len(self.window))

    def covered(self) -> Float64Array:
        """The share of the strata that have a report here, or of which one more would not weigh too much."""
        strata, most = self.strata, np.bincount(self.owner, self.weight, len(self.window)) / LEAST_REPORTS
        # A stratum that is not drawn is covered only if it is empty.
        is_covered = strata.share <= most[strata.owner, None] * self.chance
        is_covered.ravel()[self.stratum] = True
        return strata.by_set((strata.share * is_covered).sum(axis=1, keepdims=True))[:, 0]

    def fit(self, value: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Of each window, the weighted line through (at, value): its value at 0, its slope; and the variance of the
        former, by leaving out one step after the other."""
        num, weight, at = len(self.window), self.weight, self.at
        terms = weight, weight * at, weight * at**2, weight * value, weight * (at * value)
        whole = np.array([np.bincount(self.owner, each, num) for each in terms])
        of_step = np.array([np.bincount(self.step, each) for each in terms])
        lines = _solved(whole, whole[0])
        left_out = _solved(whole[:, self.owner_of_step] - of_step, whole[0][self.owner_of_step])
        squares = (left_out[0] - lines[0][self.owner_of_step]) ** 2
        num_steps = np.bincount(self.owner_of_step, minlength=num)
        return lines, np.bincount(self.owner_of_step, squares, num) * (num_steps - 1) / np.maximum(num_steps, 1)


def _solved(sums: Float64Array, total: Float64Array) -> Float64Array:
    """The values at 0 and the slopes, float64 [2, m], of lines from their five sums, [5, m]."""
    one, first, second, own, both = sums
    ridge = _RIDGE * total
    determinant = (one + ridge) * (second + ridge) - first**2
    level, slope = (second + ridge) * own - first * both, (one + ridge) * both - first * own
    lines: Float64Array = np.stack([level, slope]) / determinant
    return lines


def _lines(inside: _Inside, prior_weight: float) -> list[Line]:
    num_reports, num_steps = inside.num_reports(), inside.num_steps()
    is_fitted = np.minimum(num_reports, num_steps) >= LEAST_FITTED
    nats, variance = np.zeros((2, len(is_fitted)))
    if is_fitted.any():
        # Of a window that holds too little, what comes out is dropped.
        with np.errstate(invalid="ignore", divide="ignore"):
            found = _fitted(inside, prior_weight)
        nats, variance = (np.where(is_fitted, each, 0.0) for each in found)
    columns = nats, variance, inside.window, num_reports, num_steps, inside.covered()
    return [Line(*each) for each in zip(*(each.tolist() for each in columns), strict=True)]


def _fitted(inside: _Inside, prior_weight: float) -> tuple[Float64Array, Float64Array]:
    """The value of each window's line at its end, and the variance of that."""
    (_, slope), _ = inside.fit(inside.excess)
    flat = inside.excess - slope[inside.owner] * inside.at
    level, expected = expected_excess(inside.strata, inside.stratum, inside.step, inside.kernel, flat, prior_weight)
    (end, _), variance = inside.fit(inside.excess - expected)
    return level + end, variance
