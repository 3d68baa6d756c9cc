"""A quantile sketch of base losses: what many workers count adds up to the same, in any order."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

RELATIVE_ERROR: Final = 1e-3
_LEAST: Final = 1e-6
"""Losses below this, in nats, count as this one."""
_MOST: Final = 1e6
_LOG_WIDTH: Final = float(np.log((1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)))
_NUM_BINS: Final = int(np.ceil(np.log(_MOST / _LEAST) / _LOG_WIDTH)) + 1


class QuantileSketch:
    """Counts of positive numbers in bins whose bounds grow by one factor.

    A quantile is the middle of its bin, within RELATIVE_ERROR of a number that was added, of any amount of them. The
    counts do not depend on the order of what was added, so a corpus that three workers score has the strata of one that
    one worker scored.

    After DDSketch (Masson, Rim, Lee, "DDSketch: a fast and fully-mergeable quantile sketch with relative-error
    guarantees", VLDB 2019), over a fixed range of nats per token.
    """

    def __init__(self, counts: NDArray[np.int64] | None = None) -> None:
        self._counts = np.zeros(_NUM_BINS, dtype=np.int64) if counts is None else counts

    def __len__(self) -> int:
        """How many numbers were added."""
        return int(self._counts.sum())

    def add(self, values: ArrayLike) -> None:
        """Count numbers, [n]; none of them may be NaN."""
        logs = np.log(np.clip(np.asarray(values, dtype=np.float64), _LEAST, _MOST) / _LEAST)
        np.add.at(self._counts, np.ceil(logs / _LOG_WIDTH).astype(np.int64), 1)

    def merged(self, other: "QuantileSketch") -> "QuantileSketch":
        """The sketch of what either has counted."""
        return QuantileSketch(self._counts + other._counts)

    def quantiles(self, shares: ArrayLike) -> NDArray[np.float64]:
        """The numbers below which the given shares (in [0, 1], [q]) of all lie, float64 [q].

        Raises:
            ValueError: when nothing was added.
        """
        if not len(self):
            raise ValueError("nothing was added to the sketch")
        ranks = np.asarray(shares, dtype=np.float64) * (len(self) - 1)
        bins = np.searchsorted(np.cumsum(self._counts), np.floor(ranks), side="right")
        return _middles(bins)

    def edges(self, num_quantiles: int) -> NDArray[np.float64]:
        """The inner edges of quantiles of equal mass, float64 [num_quantiles - 1]; half-way between two ranks."""
        ranks = np.arange(1, num_quantiles) * len(self) / num_quantiles
        below, above = (
            self._at_rank(np.clip(each, 0, len(self) - 1)) for each in (np.ceil(ranks) - 1, np.floor(ranks))
        )
        return (below + above) / 2

    def histogram(self, edges: ArrayLike) -> NDArray[np.int64]:
        """How many numbers lie between neighbours of the rising `edges` [n]: int64 [n - 1]."""
        counts, _ = np.histogram(_middles(np.arange(_NUM_BINS)), np.asarray(edges), weights=self._counts)
        return counts.astype(np.int64)

    def to_json(self) -> dict[str, int]:
        """The counts of the bins that have any."""
        filled = np.flatnonzero(self._counts)
        return dict(zip(map(str, filled.tolist()), self._counts[filled].tolist(), strict=True))

    @classmethod
    def from_json(cls, counts: Mapping[str, int]) -> "QuantileSketch":
        sketch = cls()
        for each, count in counts.items():
            sketch._counts[int(each)] = count
        return sketch

    def _at_rank(self, rank: NDArray[np.float64]) -> NDArray[np.float64]:
        return _middles(np.searchsorted(np.cumsum(self._counts), rank, side="right"))


def _middles(bins: NDArray[np.int64]) -> NDArray[np.float64]:
    """The number in each bin that is equally far, in proportion, from its two bounds."""
    middles: NDArray[np.float64] = _LEAST * np.exp(bins * _LOG_WIDTH) * (1 - RELATIVE_ERROR)
    return middles
