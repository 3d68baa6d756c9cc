"""The partition of a corpus into strata, and the address of every sample in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]

ROW_BITS = 32


def sample_ids(segment: Int64Array, row: Int64Array) -> Int64Array:
    """The addresses `segment << 32 | row`, int64, of the rows of segments."""
    return (segment << ROW_BITS) | row


class Extent(NamedTuple):
    """A stretch of rows of one segment that belong to one stratum."""

    stratum: int
    segment: int
    first_row: int
    num_rows: int


@dataclass(frozen=True)
class Partition:
    """The strata of a corpus: base-loss quantile x group, laid end to end on a line of `num_samples` places.

    Stratum k is quantile k % num_quantiles of group k // num_quantiles. The extents stand in stratum order.
    """

    groups: tuple[str, ...]
    num_quantiles: int
    extents: tuple[Extent, ...]

    @property
    def num_strata(self) -> int:
        return len(self.groups) * self.num_quantiles

    @property
    def num_samples(self) -> int:
        return int(self.sizes.sum())

    @cached_property
    def sizes(self) -> Int64Array:
        """int64 [num_strata]: how many samples each stratum holds."""
        sizes = np.zeros(self.num_strata, dtype=np.int64)
        np.add.at(sizes, self._columns[:, 0], self._columns[:, 3])
        return sizes

    def locate(self, stratum: Int64Array, place: Int64Array) -> Int64Array:
        """The sample ids, int64 [n], that stand at `place` (int64 [n], in [0, size)) of their strata (int64 [n])."""
        on_line = self._stratum_starts[stratum] + place
        index = self._extent_starts.searchsorted(on_line, side="right") - 1
        return sample_ids(self._columns[index, 1], self._columns[index, 2] + on_line - self._extent_starts[index])

    def stratum_of(self, sample_id: Int64Array) -> Int64Array:
        """The stratum of each sample of this partition, int64 [n]."""
        extents, first_ids = self._by_address
        strata: Int64Array = extents[np.searchsorted(first_ids, sample_id, side="right") - 1, 0]
        return strata

    @cached_property
    def _by_address(self) -> tuple[Int64Array, Int64Array]:
        """The extents in the order of their addresses, and the first sample id of each."""
        first_ids = sample_ids(self._columns[:, 1], self._columns[:, 2])
        order = np.argsort(first_ids)
        return self._columns[order], first_ids[order]

    @cached_property
    def _columns(self) -> Int64Array:
        return np.array(self.extents, dtype=np.int64).reshape(-1, 4)

    @cached_property
    def _extent_starts(self) -> Int64Array:
        return _starts(self._columns[:, 3])

    @cached_property
    def _stratum_starts(self) -> Int64Array:
        return _starts(self.sizes)


def stratum_name(groups: Sequence[str], num_quantiles: int, stratum: int) -> str:
    return f"{groups[stratum // num_quantiles]}/q{stratum % num_quantiles}"


def _starts(lengths: Int64Array) -> Int64Array:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)[:-1]])


def extents_of(segment: int, strata: Int64Array) -> list[Extent]:
    """The extents of a segment whose rows have the sorted `strata` (int64 [num_rows])."""
    values, first_rows, counts = np.unique(strata, return_index=True, return_counts=True)
    return [Extent(int(k), segment, int(f), int(n)) for k, f, n in zip(values, first_rows, counts, strict=True)]
