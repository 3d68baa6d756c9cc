"""What was reported of each stratum: since the run began, and lately."""

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

FIRST_VISITS: Final = 0
LATER_VISITS: Final = 1


@dataclass(slots=True, eq=False)
class Totals:
    """What was reported of each stratum since the run began; arrays [num_strata]."""

    samples: Int64Array
    tokens: Int64Array
    flips: Int64Array
    loss_nats: Float64Array
    excess_nats: Float64Array

    @classmethod
    def zeros(cls, num_strata: int) -> "Totals":
        def counts() -> Int64Array:
            return np.zeros(num_strata, dtype=np.int64)

        return cls(counts(), counts(), counts(), np.zeros(num_strata), np.zeros(num_strata))

    def add(self, stratum: Int64Array, rows: np.ndarray) -> None:
        # numpy adds contiguous arrays of the sums' own type ten times as fast as fields of records.
        np.add.at(self.samples, stratum, 1)
        np.add.at(self.tokens, stratum, rows["num_tokens"].astype(np.int64))
        np.add.at(self.flips, stratum, rows["num_flips"].astype(np.int64))
        np.add.at(self.loss_nats, stratum, np.ascontiguousarray(rows["loss_nats"]))
        np.add.at(self.excess_nats, stratum, rows["loss_nats"] - rows["base_loss_nats"])

    def grow(self, num_strata: int) -> None:
        """Strata that stand at the end are new; nothing was reported of them."""
        for each in fields(self):
            array = getattr(self, each.name)
            setattr(self, each.name, np.pad(array, (0, num_strata - len(array))))


@dataclass(slots=True, eq=False)
class DecayedSums:
    """Recent damage of each stratum. A report of step s weighs 0.5 ** ((origin - s) / half_life).

    First visits and later ones are kept apart: a later visit tells of a sample that the run has trained on.
    """

    sums: Float64Array
    """float64 [9, num_strata]: all of the below, so that they fade at once."""
    origin: int = 0
    """The latest step reported; the sums are as seen from there."""

    @classmethod
    def zeros(cls, num_strata: int) -> "DecayedSums":
        return cls(np.zeros((9, num_strata)))

    @property
    def count(self) -> Float64Array:
        """float64 [2, num_strata]: first visits, later visits."""
        return self.sums[:2]

    @property
    def damage(self) -> Float64Array:
        """float64 [2, num_strata]."""
        return self.sums[2:4]

    @property
    def excess(self) -> Float64Array:
        """float64 [2, num_strata]: of first visits, the sum of loss minus base loss, and of its square."""
        return self.sums[4:6]

    @property
    def age(self) -> Float64Array:
        """float64 [3, num_strata]: of first visits, sums of age (origin - s), age squared, and age times excess."""
        return self.sums[6:]

    def grow(self, num_strata: int) -> None:
        """Strata that stand at the end are new; nothing was reported of them."""
        self.sums = np.pad(self.sums, ((0, 0), (0, num_strata - self.sums.shape[1])))

    def copy(self) -> "DecayedSums":
        return DecayedSums(self.sums.copy(), self.origin)

    def add(
        self,
        step: int,
        half_life: float,
        visit: Int64Array,
        stratum: Int64Array,
        damage: Float64Array,
        excess: Float64Array,
    ) -> None:
        """Count n samples of one step; arrays [n], damage in the unit of the signal, excess in nats per token."""
        if step > self.origin:
            self._see_from(step, half_life)
        age = float(self.origin - step)
        weight = 0.5 ** (age / half_life)
        cell = visit * self.sums.shape[1] + stratum
        np.add.at(self.count.reshape(-1), cell, weight)
        np.add.at(self.damage.reshape(-1), cell, weight * damage)
        # Later visits weigh nothing here.
        excess = np.where(visit == FIRST_VISITS, excess, 0.0)
        np.add.at(self.excess[0], stratum, weight * excess)
        np.add.at(self.excess[1], stratum, weight * excess * excess)
        if age:
            aged = np.where(visit == FIRST_VISITS, weight * age, 0.0)
            np.add.at(self.age[0], stratum, aged)
            np.add.at(self.age[1], stratum, aged * age)
            np.add.at(self.age[2], stratum, aged * excess)

    def _see_from(self, step: int, half_life: float) -> None:
        """Every report grows older by the same d: a becomes a + d, a**2 becomes a**2 + d * (2 * a + d)."""
        passed = float(step - self.origin)
        count, (age, squares, aged_excess) = self.count[FIRST_VISITS], self.age
        squares += passed * (2.0 * age + passed * count)
        age += passed * count
        aged_excess += passed * self.excess[0]
        self.sums *= 0.5 ** (passed / half_life)
        self.origin = step
