"""The walk of each stratum through its rows: within an epoch none comes twice, also while the stratum grows.

An epoch of a stratum that does not grow is one keyed permutation, and a cursor in it. Rows that come in the middle of
an epoch make a block of their own, with a permutation and a cursor of its own. A draw first picks the block, as likely
as its share of the rows that are left, then takes the block's next row: so any row that is left is equally likely.
When nothing is left the epoch is over, and in the next one all rows are one block.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.permutation import keys, permute

Int64Array = NDArray[np.int64]

_PICK_ROWS: Final = 2
_PICK_BLOCK: Final = 4

BORN_ROW: Final = np.dtype([("stratum", "<i8"), ("first_row", "<i8"), ("epoch", "<i8")])
"""The rows of a stratum from `first_row` on came in its epoch `epoch`, as far as the next such record."""


class Draws(NamedTuple):
    """Which rows of their strata are drawn; each int64 [n]."""

    row: Int64Array
    times_drawn: Int64Array
    """How often the row has been drawn, this time included: 1 is a first visit."""


class _Places(NamedTuple):
    """Where the walk was for each draw, before the permutations; each int64 [n]."""

    epoch: Int64Array
    block: Int64Array
    first_row: Int64Array
    size: Int64Array
    place: Int64Array


@dataclass(slots=True, eq=False)
class Walk:
    """K strata, at most B blocks in the current epoch of any."""

    num_draws: Int64Array
    """int64 [K]: draws since the run began."""
    epoch: Int64Array
    """int64 [K]: epochs that are over."""
    block_size: Int64Array
    """int64 [K, B]: the rows of each block of the epoch, which lie one after the other."""
    block_drawn: Int64Array
    """int64 [K, B]: how many of them have been drawn in this epoch; never all rows of a stratum that has any."""
    born: np.ndarray
    """BORN_ROW, by stratum and epoch: rows that did not come in the first epoch of their stratum."""

    @classmethod
    def over(cls, sizes: Int64Array) -> "Walk":
        """A walk through strata of the given sizes (int64 [K]) that has not begun."""
        num = len(sizes)
        nothing = np.zeros((num, 1), dtype=np.int64)
        block_size = np.array(sizes, dtype=np.int64).reshape(num, 1)
        return cls(nothing[:, 0].copy(), nothing[:, 0].copy(), block_size, nothing, np.empty(0, dtype=BORN_ROW))

    def copy(self) -> "Walk":
        return Walk(
            self.num_draws.copy(),
            self.epoch.copy(),
            self.block_size.copy(),
            self.block_drawn.copy(),
            self.born.copy(),
        )

    @property
    def sizes(self) -> Int64Array:
        """int64 [K]: how many rows each stratum has."""
        is_one_block = self.block_size.shape[1] == 1
        sizes: Int64Array = self.block_size[:, 0] if is_one_block else self.block_size.sum(axis=1)
        return sizes

    def draw(self, seed: int, stratum: Int64Array) -> Draws:
        """Take the next row of each stratum in the sorted `stratum` (int64 [n], none of them empty)."""
        at = self._advance(seed, stratum)
        key = keys(seed, _PICK_ROWS, stratum, at.epoch, at.block)
        row = at.first_row + permute(key, at.size, at.place)
        return Draws(row, at.epoch - self._born_in(stratum, row) + 1)

    def advance(self, seed: int, stratum: Int64Array) -> None:
        """Go as far as `draw` does."""
        if self.block_size.shape[1] == 1:
            self._count(stratum)
        else:
            self._advance_in_blocks(seed, stratum)

    def grow(self, sizes: Int64Array) -> None:
        """Strata have `sizes` rows now (int64 [at least K], none smaller than before); new strata stand at the end.

        The new rows can be drawn from now on, in this epoch already.
        """
        more = len(sizes) - len(self.epoch)
        self.num_draws, self.epoch = (np.pad(each, (0, more)) for each in (self.num_draws, self.epoch))
        self.block_size, self.block_drawn = (
            np.pad(each, ((0, more), (0, 1))) for each in (self.block_size, self.block_drawn)
        )
        for k in np.flatnonzero(sizes - self.sizes):
            self._grow_one(int(k), int(sizes[k]))
        self._trim()

    def _grow_one(self, k: int, size: int) -> None:
        old = int(self.block_size[k].sum())
        last = max(0, int(np.count_nonzero(self.block_size[k])) - 1)
        block = last if not self.block_drawn[k, last] else last + 1
        self.block_size[k, block] += size - old
        if self.epoch[k] and not (self.born[self.born["stratum"] == k]["epoch"] == self.epoch[k]).any():
            born = np.append(self.born, np.array([(k, old, self.epoch[k])], dtype=BORN_ROW))
            self.born = np.sort(born, order=["stratum", "epoch"])

    def _advance(self, seed: int, stratum: Int64Array) -> _Places:
        if self.block_size.shape[1] == 1:
            return self._advance_in_one_block(stratum)
        return self._advance_in_blocks(seed, stratum)

    def _advance_in_one_block(self, stratum: Int64Array) -> _Places:
        size, nothing = self.block_size[stratum, 0], np.zeros(len(stratum), dtype=np.int64)
        epoch, place = np.divmod(self.block_drawn[stratum, 0] + _occurrence(stratum), size)
        at = _Places(self.epoch[stratum] + epoch, nothing, nothing, size, place)
        self._count(stratum)
        return at

    def _count(self, stratum: Int64Array) -> None:
        """Where each stratum is one block, a draw is a step of its cursor."""
        count = np.bincount(stratum, minlength=len(self.epoch))
        self.num_draws += count
        over, self.block_drawn[:, 0] = np.divmod(self.block_drawn[:, 0] + count, np.maximum(self.block_size[:, 0], 1))
        self.epoch += over

    def _advance_in_blocks(self, seed: int, stratum: Int64Array) -> _Places:
        """As above, one draw of each stratum after the other, since each changes how likely the blocks are."""
        self.num_draws += np.bincount(stratum, minlength=len(self.epoch))
        occurrence = _occurrence(stratum)
        at = _Places(*(np.empty(len(stratum), dtype=np.int64) for _ in _Places._fields))
        for turn in range(int(occurrence.max(initial=-1)) + 1):
            here = np.flatnonzero(occurrence == turn)
            for whole, part in zip(at, self._advance_once(seed, stratum[here]), strict=True):
                whole[here] = part
        self._trim()
        return at

    def _advance_once(self, seed: int, k: Int64Array) -> _Places:
        """The next draw of each of the different strata `k`."""
        left = self.block_size[k] - self.block_drawn[k]
        total = left.sum(axis=1)
        drawn = self.block_drawn[k].sum(axis=1)
        chance = (keys(seed, _PICK_BLOCK, k, self.epoch[k], drawn) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        chosen = np.minimum((chance * total).astype(np.int64), total - 1)
        block = (np.cumsum(left, axis=1) <= chosen[:, None]).sum(axis=1)
        first_row = np.cumsum(self.block_size[k], axis=1)[np.arange(len(k)), block] - self.block_size[k, block]
        at = _Places(self.epoch[k], block, first_row, self.block_size[k, block], self.block_drawn[k, block])
        self.block_drawn[k, block] += 1
        self._begin_epoch(k[total == 1])
        return at

    def _begin_epoch(self, k: Int64Array) -> None:
        size = self.block_size[k].sum(axis=1)
        self.epoch[k] += 1
        self.block_size[k], self.block_drawn[k] = 0, 0
        self.block_size[k, 0] = size

    def _trim(self) -> None:
        """As many blocks as the stratum with the most of them has: equal walks have equal arrays."""
        num_blocks = max(1, int(np.count_nonzero(self.block_size, axis=1).max(initial=1)))
        self.block_size = np.ascontiguousarray(self.block_size[:, :num_blocks])
        self.block_drawn = np.ascontiguousarray(self.block_drawn[:, :num_blocks])

    def _born_in(self, stratum: Int64Array, row: Int64Array) -> Int64Array:
        """The epoch of its stratum in which each row came, int64 [n]."""
        epoch = np.zeros(len(row), dtype=np.int64)
        for k, first_row, born in self.born:
            epoch[(stratum == k) & (row >= first_row)] = born
        return epoch


def _occurrence(stratum: Int64Array) -> Int64Array:
    """How often each value of the sorted `stratum` stood before it: 0, 1, 2, ... in every run of equal values."""
    return np.arange(len(stratum)) - stratum.searchsorted(stratum)
