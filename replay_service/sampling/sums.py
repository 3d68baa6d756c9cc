"""What was reported of each stratum: since the run began, and lately.

Samples are added in their order, whether all at once or one after the other, so the sums are the same to the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.step_slices import StepSlice

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

FIRST_VISITS: Final = 0
LATER_VISITS: Final = 1


@dataclass(slots=True, eq=False)
class Totals:
    """What was reported of each stratum since the run began."""

    counts: Int64Array
    """int64 [5, num_strata]: samples, tokens, flips, gains, and tokens of the reports that told of gains."""
    nats: Float64Array
    """float64 [2, num_strata]: losses, and losses minus base losses."""

    @classmethod
    def zeros(cls, num_strata: int) -> "Totals":
        return cls(np.zeros((5, num_strata), dtype=np.int64), np.zeros((2, num_strata)))

    @property
    def samples(self) -> Int64Array:
        return _row(self.counts, 0)

    @property
    def tokens(self) -> Int64Array:
        return _row(self.counts, 1)

    @property
    def flips(self) -> Int64Array:
        return _row(self.counts, 2)

    @property
    def gains(self) -> Int64Array:
        return _row(self.counts, 3)

    @property
    def tokens_with_gains(self) -> Int64Array:
        return _row(self.counts, 4)

    @property
    def loss_nats(self) -> Float64Array:
        return _row(self.nats, 0)

    @property
    def excess_nats(self) -> Float64Array:
        return _row(self.nats, 1)

    def add(self, stratum: Int64Array, rows: np.ndarray, excess: Float64Array) -> None:
        """Count n samples: their strata, REPORTED_ROW [n], and losses minus base losses in nats per token."""
        counts, nats = np.ones((5, len(rows)), dtype=np.int64), np.empty((2, len(rows)))
        counts[1], counts[2], nats[0], nats[1] = rows["num_tokens"], rows["num_flips"], rows["loss_nats"], excess
        np.maximum(rows["num_gains"], 0, out=counts[3])
        np.multiply(rows["num_tokens"], rows["num_gains"] >= 0, counts[4])
        cells = _ROWS * self.counts.shape[1] + stratum
        _add(self.counts, cells, counts)
        _add(self.nats, cells[:2], nats)

    def grow(self, num_strata: int) -> None:
        """Strata that stand at the end are new; nothing was reported of them."""
        self.counts, self.nats = _wider(self.counts, num_strata), _wider(self.nats, num_strata)


@dataclass(slots=True, eq=False)
class DecayedSums:
    """Recent damage of each stratum. A report of step s weighs 0.5 ** ((origin - s) / half_life).

    First visits and later ones are kept apart: a later visit tells of a sample that the run has trained on.

    The sums are kept as seen from a reference step, so that they need not fade whenever a report of a later step comes:
    it weighs more than one instead. The first report of a half-life after the reference moves it to its own step. When
    that happens follows from the order of the reports alone, and what comes between two moves can be added at once.
    """

    sums: Float64Array
    """float64 [4, num_strata], as seen from the reference: the count of first visits and of later ones, the damage of
    both likewise."""
    half_life: float
    reference: int = 0
    origin: int = 0
    """The latest step reported; the reference is no later one."""

    @classmethod
    def zeros(cls, num_strata: int, half_life: float) -> "DecayedSums":
        return cls(np.zeros((4, num_strata)), half_life)

    @property
    def passed(self) -> int:
        """By how many steps the latest report lies after the reference."""
        return self.origin - self.reference

    @property
    def seen(self) -> Float64Array:
        """float64 [4, num_strata]: the sums by weights as seen from the origin."""
        return self.sums * self._weight(self.passed)

    @property
    def count(self) -> Float64Array:
        """float64 [2, num_strata], as seen from the origin: first visits, later visits."""
        return self.seen[:2]

    @property
    def damage(self) -> Float64Array:
        """float64 [2, num_strata], likewise."""
        return self.seen[2:4]

    def grow(self, num_strata: int) -> None:
        """Strata that stand at the end are new; nothing was reported of them."""
        self.sums = _wider(self.sums, num_strata)

    def copy(self) -> "DecayedSums":
        return DecayedSums(self.sums.copy(), self.half_life, self.reference, self.origin)

    def change_half_life(self, half_life: float) -> None:
        """Reports keep the weight that they have now, and fade by another half-life from now on."""
        self._see_from(self.origin)
        self.half_life = half_life

    def add(self, slices: Sequence[StepSlice], visit: Int64Array, stratum: Int64Array, damage: Float64Array) -> None:
        """Count the n samples of some steps; arrays [n], damage in the unit of the signal."""
        weight, moves = self._weighed(slices, len(visit))
        cells, terms = _COUNT_AND_DAMAGE * self.sums.shape[1] + stratum, np.empty((2, len(visit)))
        cells += visit * self.sums.shape[1]
        terms[0] = weight
        np.multiply(weight, damage, terms[1])
        begin = 0
        for end, reference in moves:
            _add(self.sums, cells[:, begin:end], terms[:, begin:end])
            self._see_from(reference)
            begin = end
        _add(self.sums, cells[:, begin:], terms[:, begin:])

    def _weighed(self, slices: Sequence[StepSlice], num: int) -> tuple[Float64Array, list[tuple[int, int]]]:
        """The weight of each sample at the reference that it meets; where that moves, and to which step."""
        weight = np.empty(num)
        reference, moves = self.reference, []
        for step, begin, end in slices:
            if step - reference >= self.half_life:
                reference = step
                moves.append((begin, step))
            # One power a step: of an array the last bit of each may depend on its place.
            weight[begin:end] = self._weight(reference - step)
            self.origin = max(self.origin, step)
        return weight, moves

    def _weight(self, age: int) -> float:
        weight: float = 0.5 ** (age / self.half_life)
        return weight

    def _see_from(self, reference: int) -> None:
        self.sums *= self._weight(reference - self.reference)
        self.reference = reference


_ROWS: Final = np.arange(5)[:, None]
_COUNT_AND_DAMAGE: Final = np.array([0, 2])[:, None]
"""Where in `DecayedSums.sums` a first visit counts; a later one counts a row further."""


def _row(array: np.ndarray, index: int) -> np.ndarray:
    row: np.ndarray = array[index]
    return row


def _add(sums: np.ndarray, cells: Int64Array, terms: np.ndarray) -> None:
    """Add `terms` [m, n] to `sums`, where `cells` [m, n] says."""
    # In one dimension numpy adds many times as fast.
    np.add.at(sums.reshape(-1), cells.reshape(-1), terms.reshape(-1))


def _wider(array: np.ndarray, num_strata: int) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, num_strata - array.shape[1])))
