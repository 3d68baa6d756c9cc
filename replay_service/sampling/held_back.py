"""Rows that are held back for later epochs, so that first visits go on after the first epoch of a stratum.

A first visit is the only honest measurement of forgetting: later ones tell of rows that the run has trained on. So each
epoch leaves some rows out, and each later epoch takes in some of them for the first time. Which rows those are follows
from the place of a row in its stratum alone: the places modulo 64 make 64 classes, and an epoch frees whole classes.
So a stratum that grows keeps the rows that it held back. This is this project's choice.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]

NUM_CLASSES: Final = 64
_STRIDE: Final = 37
"""Class number i to be freed is i * 37 modulo 64: so what is held back is spread evenly, and class 0 is free at once:
a stratum that has a row has a row to draw."""
_FREED: Final = 1 / 8
"""The share of what is still held back that each epoch frees."""


@dataclass(frozen=True, slots=True)
class HeldBack:
    """Which rows of a stratum an epoch may draw, where `share` of the rows are held back in the first one."""

    share: float
    _num_free: Int64Array = field(init=False, repr=False, compare=False)
    """int64 [E + 1]: how many classes are free in each epoch; all of them from epoch E on."""
    _classes: Int64Array = field(init=False, repr=False, compare=False)
    """int64 [65, 64]: the free classes, ascending, where so many are free."""
    _below: Int64Array = field(init=False, repr=False, compare=False)
    """int64 [65, 64]: how many of them are smaller than a class."""
    _freed_in: Int64Array = field(init=False, repr=False, compare=False)
    """int64 [64]: the epoch that frees each class."""

    def __post_init__(self) -> None:
        num_free = _schedule(round(self.share * NUM_CLASSES))
        rank = np.empty(NUM_CLASSES, dtype=np.int64)
        rank[np.arange(NUM_CLASSES) * _STRIDE % NUM_CLASSES] = np.arange(NUM_CLASSES)
        is_free = rank[None, :] < np.arange(NUM_CLASSES + 1)[:, None]
        for name, table in {
            "_num_free": num_free,
            "_classes": np.argsort(~is_free, axis=1, kind="stable"),
            "_below": np.cumsum(is_free, axis=1) - is_free,
            "_freed_in": np.searchsorted(num_free, rank, side="right"),
        }.items():
            object.__setattr__(self, name, table)

    @property
    def last_epoch(self) -> int:
        """The first epoch that draws all rows; the later ones do too."""
        return len(self._num_free) - 1

    def num_drawn(self, num_rows: Int64Array, epoch: Int64Array) -> Int64Array:
        """How many of the first `num_rows` rows (int64 [n]) of a stratum its epoch (int64 [n]) draws."""
        if not self.last_epoch:
            return num_rows
        free = self._free(epoch)
        whole, rest = np.divmod(num_rows, NUM_CLASSES)
        num: Int64Array = whole * free + self._below[free, rest]
        return num

    def row(self, index: Int64Array, epoch: Int64Array) -> Int64Array:
        """Row number `index` (int64 [n]) of those that an epoch (int64 [n]) of a stratum draws."""
        if not self.last_epoch:
            return index
        free = self._free(epoch)
        whole, rest = np.divmod(index, free)
        row: Int64Array = whole * NUM_CLASSES + self._classes[free, rest]
        return row

    def freed_in(self, row: Int64Array) -> Int64Array:
        """The first epoch that draws each row (int64 [n])."""
        epoch: Int64Array = self._freed_in[row % NUM_CLASSES]
        return epoch

    def _free(self, epoch: Int64Array) -> Int64Array:
        free: Int64Array = self._num_free[np.minimum(epoch, self.last_epoch)]
        return free


def _schedule(num_held: int) -> Int64Array:
    num_free = []
    while num_held:
        num_free.append(NUM_CLASSES - num_held)
        num_held -= max(1, round(num_held * _FREED))
    return np.array([*num_free, NUM_CLASSES])
