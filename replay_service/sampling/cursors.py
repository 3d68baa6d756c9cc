"""The cursor of each stratum in its rows: within an epoch none comes twice, also while the stratum grows.

An epoch of a stratum that does not grow is one keyed permutation, and a cursor in it. Rows that come in the middle of
an epoch make a block of their own, with a permutation and a cursor of its own. A draw first picks the block, as likely
as its share of the rows that are left, then takes the block's next row: so any row that is left is equally likely.
When nothing is left the epoch is over, and in the next one all rows are one block.

An epoch may leave rows out (`held_back`). What is said of an epoch's rows then is said of those that it draws.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.held_back import HeldBack
from replay_service.sampling.permutation import keys, permute, uniforms

Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]

_PICK_ROWS: Final = 2
_PICK_BLOCK: Final = 4

BORN_ROW: Final = np.dtype([("stratum", "<i8"), ("first_row", "<i8"), ("epoch", "<i8")])
"""The rows of a stratum from `first_row` on came in its epoch `epoch`, as far as the next such record."""


class Draws(NamedTuple):
    """Which rows of their strata are drawn; each [n]."""

    row: Int64Array
    times_drawn: Int64Array
    """How often the row has been drawn, this time included: 1 is a first visit."""
    chance: Float64Array
    """How likely the draw of the stratum was to be such a visit: a first one, or a later one."""


class _Places(NamedTuple):
    """Where the cursor was for each draw, before the permutations; each [n]. Rows are counted among the epoch's."""

    epoch: Int64Array
    block: Int64Array
    first_row: Int64Array
    size: Int64Array
    place: Int64Array
    first_visits: Float64Array
    """How likely it was to be a first visit."""


NOTHING_HELD_BACK: Final = HeldBack(0.0)


@dataclass(slots=True, eq=False)
class Cursors:
    """K strata, at most B blocks in the current epoch of any."""

    num_draws: Int64Array
    """int64 [K]: draws since the run began."""
    epoch: Int64Array
    """int64 [K]: epochs that are over."""
    block_size: Int64Array
    """int64 [K, B]: the rows of each block that the epoch draws; blocks lie one after the other."""
    block_drawn: Int64Array
    """int64 [K, B]: how many of them have been drawn in this epoch; never all rows of a stratum that has any."""
    born: np.ndarray
    """BORN_ROW, by stratum and epoch: rows that did not come in the first epoch of their stratum."""
    sizes: Int64Array
    """int64 [K]: how many rows each stratum has."""
    held_back: HeldBack
    """Which of them an epoch draws."""

    @classmethod
    def over(cls, sizes: Int64Array, held_back: HeldBack = NOTHING_HELD_BACK) -> "Cursors":
        """Cursors of strata of the given sizes (int64 [K]), at the beginning."""
        num = len(sizes)
        nothing, sizes = np.zeros((num, 1), dtype=np.int64), np.array(sizes, dtype=np.int64)
        block_size = held_back.num_drawn(sizes, nothing[:, 0]).reshape(num, 1).copy()
        born = np.empty(0, dtype=BORN_ROW)
        return cls(nothing[:, 0].copy(), nothing[:, 0].copy(), block_size, nothing, born, sizes, held_back)

    def copy(self) -> "Cursors":
        return Cursors(
            self.num_draws.copy(),
            self.epoch.copy(),
            self.block_size.copy(),
            self.block_drawn.copy(),
            self.born.copy(),
            self.sizes.copy(),
            self.held_back,
        )

    def draw(self, seed: int, stratum: Int64Array) -> Draws:
        """Take the next row of each stratum in the sorted `stratum` (int64 [n], none of them empty)."""
        at = self._advance(seed, stratum)
        key = keys(seed, _PICK_ROWS, stratum, at.epoch, at.block)
        row = self.held_back.row(at.first_row + permute(key, at.size, at.place), at.epoch)
        times_drawn = at.epoch - np.maximum(self._born_in(stratum, row), self.held_back.freed_in(row)) + 1
        return Draws(row, times_drawn, np.where(times_drawn == 1, at.first_visits, 1.0 - at.first_visits))

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
        self.num_draws, self.epoch, self.sizes = (
            np.pad(each, (0, more)) for each in (self.num_draws, self.epoch, self.sizes)
        )
        self.block_size, self.block_drawn = (
            np.pad(each, ((0, more), (0, 1))) for each in (self.block_size, self.block_drawn)
        )
        for k in np.flatnonzero(sizes - self.sizes):
            self._grow_one(int(k), int(sizes[k]))
        self._trim()

    def _grow_one(self, k: int, size: int) -> None:
        old = int(self.sizes[k])
        last = max(0, int(np.count_nonzero(self.block_size[k])) - 1)
        block = last if not self.block_drawn[k, last] else last + 1
        before, after = self.held_back.num_drawn(np.array([old, size]), self.epoch[k].repeat(2))
        self.block_size[k, block] += after - before
        self.sizes[k] = size
        if self.epoch[k] and not (self.born[self.born["stratum"] == k]["epoch"] == self.epoch[k]).any():
            born = np.append(self.born, np.array([(k, old, self.epoch[k])], dtype=BORN_ROW))
            self.born = np.sort(born, order=["stratum", "epoch"])

    def share_of_first_visits(self) -> Float64Array:
        """How likely the next draw of each stratum is to be a first visit, float64 [K]; 0 where it has no rows."""
        every = np.flatnonzero(self.sizes)
        first, left = self._first_visits(every, self.epoch[every], self.block_size[every, 0]), self.block_size[every]
        left = left - self.block_drawn[every]
        share = np.zeros(len(self.sizes))
        share[every] = 1.0 - (1.0 - first) * left[:, 0] / left.sum(axis=1)
        return share

    def _advance(self, seed: int, stratum: Int64Array) -> _Places:
        if self.block_size.shape[1] == 1:
            return self._advance_in_one_block(stratum)
        return self._advance_in_blocks(seed, stratum)

    def _advance_in_one_block(self, stratum: Int64Array) -> _Places:
        nothing = np.zeros(len(stratum), dtype=np.int64)
        place = self.block_drawn[stratum, 0] + _occurrence(stratum)
        epoch, size, place = self._rolled(stratum, self.epoch[stratum], self.block_size[stratum, 0], place)
        # Rounded as where there are several blocks: a plan must not depend on how many other strata have.
        first_visits = 1.0 - (1.0 - self._first_visits(stratum, epoch, size))
        at = _Places(epoch, nothing, nothing, size, place, first_visits)
        self._count(stratum)
        return at

    def _count(self, stratum: Int64Array) -> None:
        """Where each stratum is one block, a draw is a step of its cursor."""
        count = np.bincount(stratum, minlength=len(self.epoch))
        self.num_draws += count
        place, every = self.block_drawn[:, 0] + count, np.arange(len(self.epoch))
        self.epoch, self.block_size[:, 0], self.block_drawn[:, 0] = self._rolled(
            every, self.epoch, self.block_size[:, 0], place
        )

    def _rolled(
        self, stratum: Int64Array, epoch: Int64Array, size: Int64Array, place: Int64Array
    ) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Epoch, size and place of what lies at `place` of an epoch of a stratum, or beyond its end; int64 [n] each."""
        beyond = np.flatnonzero(place >= np.maximum(size, 1))
        if not len(beyond):
            return epoch, size, place
        epoch, size, place = epoch.copy(), size.copy(), place.copy()
        while len(beyond):
            # From the last epoch that frees rows on, all are of one size.
            is_last = epoch[beyond] >= self.held_back.last_epoch
            num = np.where(is_last, place[beyond] // size[beyond], 1)
            place[beyond] -= num * size[beyond]
            epoch[beyond] += num
            size[beyond] = self.held_back.num_drawn(self.sizes[stratum[beyond]], epoch[beyond])
            beyond = beyond[place[beyond] >= size[beyond]]
        return epoch, size, place

    def _first_visits(self, stratum: Int64Array, epoch: Int64Array, size: Int64Array) -> Float64Array:
        """The share of first visits among the `size` rows (int64 [n]) that begin an epoch of a stratum, float64 [n]."""
        share, later = np.ones(len(stratum)), np.flatnonzero(epoch)
        if len(later):
            k, before = stratum[later], epoch[later] - 1
            num_rows = self.sizes[k]
            for born in self.born:
                is_born = (k == born["stratum"]) & (epoch[later] == born["epoch"])
                num_rows = np.where(is_born, born["first_row"], num_rows)
            share[later] = 1.0 - self.held_back.num_drawn(num_rows, before) / size[later]
        return share

    def _advance_in_blocks(self, seed: int, stratum: Int64Array) -> _Places:
        """As above, one draw of each stratum after the other, since each changes how likely the blocks are."""
        self.num_draws += np.bincount(stratum, minlength=len(self.epoch))
        occurrence = _occurrence(stratum)
        epoch, block, first_row, size, place = np.empty((5, len(stratum)), dtype=np.int64)
        at = _Places(epoch, block, first_row, size, place, np.empty(len(stratum)))
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
        # Below `total`, however it is rounded: the numbers are at most 1 - 2**-53.
        chosen = (uniforms(keys(seed, _PICK_BLOCK, k, self.epoch[k], drawn)) * total).astype(np.int64)
        block = (np.cumsum(left, axis=1) <= chosen[:, None]).sum(axis=1)
        first_row = np.cumsum(self.block_size[k], axis=1)[np.arange(len(k)), block] - self.block_size[k, block]
        # The first block alone may hold rows that were drawn before; the others came in this epoch.
        again = (1.0 - self._first_visits(k, self.epoch[k], self.block_size[k, 0])) * (left[:, 0] / total)
        drawn_of, size_of = self.block_drawn[k, block], self.block_size[k, block]
        at = _Places(self.epoch[k], block, first_row, size_of, drawn_of, 1.0 - again)
        self.block_drawn[k, block] += 1
        self._begin_epoch(k[total == 1])
        return at

    def _begin_epoch(self, k: Int64Array) -> None:
        self.epoch[k] += 1
        self.block_size[k], self.block_drawn[k] = 0, 0
        self.block_size[k, 0] = self.held_back.num_drawn(self.sizes[k], self.epoch[k])

    def _trim(self) -> None:
        """As many blocks as the stratum with the most of them has: equal cursors have equal arrays."""
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
