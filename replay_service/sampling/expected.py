"""What a report is expected to say, from its stratum, its domain and its quantile: so that they add no noise.

Like the damage rates, means are pooled partially: a stratum of few reports leans on its domain and its quantile.
Several sets of reports are looked at side by side, each with means of its own: to call numpy takes most of the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

_KEYS_A_REPORT: Final = 32
"""Up to so many keys a report, sums over all that there may be take less time than to find those that there are."""


@dataclass(frozen=True, slots=True)
class Strata:
    """The strata of several sets of reports, numbered through: row by row, and in a row by quantile.

    Attributes:
        share: float64 [num_rows, num_quantiles], the mass of each stratum; that of a set adds up to one. A row is a
            domain.
        owner: int64 [num_rows], the number of each row's set, ascending; each set has a row.
    """

    share: Float64Array
    owner: Int64Array

    @classmethod
    def of_one(cls, share: Float64Array, num_quantiles: int) -> "Strata":
        """Those of one set, from the mass of each stratum, float64 [num_strata]."""
        rows = share.reshape(-1, num_quantiles)
        return cls(rows, np.zeros(len(rows), dtype=np.int64))

    @property
    def num_sets(self) -> int:
        return int(self.owner[-1]) + 1

    def by_set(self, values: Float64Array) -> Float64Array:
        """The sums over the rows of each set, of float64 [..., num_rows, k]: [..., num_sets, k]."""
        starts = np.searchsorted(self.owner, np.arange(self.num_sets))
        sums: Float64Array = np.add.reduceat(values, starts, axis=-2)
        return sums


def expected_excess(
    strata: Strata, stratum: Int64Array, step: Int64Array, weight: Float64Array, excess: Float64Array, prior: float
) -> tuple[Float64Array, Float64Array]:
    """The mean of each set, float64 [num_sets], and what the reports of the other steps of its set lead to expect of
    each report, float64 [n].

    Args:
        stratum, step, weight, excess: int64, int64, float64, float64 [n], of each report; steps are numbered from 0.
        prior: how many reports a prior is worth (m).

    With n and E the weight and the summed excess of a stratum's reports, its mean is `(m * a + E) / (m + n)`, where the
    prior a is domain mean + quantile mean - overall mean, the first two shrunk to the last in the same way.
    """
    sums = weight, weight * excess
    num_rows, num_quantiles = strata.share.shape
    row, quantile = stratum // num_quantiles, stratum % num_quantiles
    owner, num_sets, num_steps = strata.owner[row], strata.num_sets, int(step.max()) + 1
    keys = (
        (owner, num_sets),
        (row, num_rows),
        (owner * num_quantiles + quantile, num_sets * num_quantiles),
        (stratum, num_rows * num_quantiles),
    )
    expected = _pooled([_without_own_step(key, num, step, num_steps, sums) for key, num in keys], prior)
    cells = np.array([np.bincount(stratum, each, strata.share.size) for each in sums]).reshape(2, num_rows, -1)
    by_quantile = strata.by_set(cells)
    overall = by_quantile.sum(axis=2, keepdims=True)
    levels = overall[:, strata.owner], cells.sum(axis=2, keepdims=True), by_quantile[:, strata.owner], cells
    means = _pooled(levels, prior)
    return strata.by_set((strata.share * means).sum(axis=1, keepdims=True))[:, 0], expected


def _pooled(levels: Sequence[Float64Array], weight: float) -> Float64Array:
    """Means, from the weights and sums [2, ...] over everything, a domain, a quantile and a stratum."""
    overall, domain, quantile, own = levels
    level = overall[1] / np.maximum(overall[0], np.finfo(np.float64).tiny)
    by_domain, by_quantile = ((weight * level + sums) / (weight + num) for num, sums in (domain, quantile))
    means: Float64Array = (weight * (by_domain + by_quantile - level) + own[1]) / (weight + own[0])
    return means


def _without_own_step(
    key: Int64Array, num_keys: int, step: Int64Array, num_steps: int, sums: Sequence[Float64Array]
) -> Float64Array:
    """For each report, the sums [2, n] over the reports of its key that are not of its step; [2, n]."""
    rest: Float64Array = _over(key, num_keys, sums) - _over(key * num_steps + step, num_keys * num_steps, sums)
    np.maximum(0.0, rest[0], out=rest[0])
    return rest


def _over(key: Int64Array, num_keys: int, sums: Sequence[Float64Array]) -> Float64Array:
    """For each report, the sums [2, n] over all reports of its key, a number below `num_keys`."""
    if num_keys > _KEYS_A_REPORT * len(key):
        _, key = np.unique(key, return_inverse=True)
    return np.array([np.bincount(key, each)[key] for each in sums])
