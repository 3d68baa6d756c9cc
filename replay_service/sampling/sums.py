"""What was reported of each stratum: since the run began, and lately."""

from dataclasses import dataclass, fields, replace
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

    count: Float64Array
    """float64 [2, num_strata]: first visits, later visits."""
    damage: Float64Array
    """float64 [2, num_strata]."""
    excess: Float64Array
    """float64 [2, num_strata]: of first visits, the sum of loss minus base loss, and of its square."""
    origin: int = 0
    """The latest step reported; the sums are as seen from there."""

    @classmethod
    def zeros(cls, num_strata: int) -> "DecayedSums":
        shape = (2, num_strata)
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape))

    def grow(self, num_strata: int) -> None:
        """Strata that stand at the end are new; nothing was reported of them."""
        more = num_strata - self.count.shape[1]
        padded = (np.pad(each, ((0, 0), (0, more))) for each in (self.count, self.damage, self.excess))
        self.count, self.damage, self.excess = padded

    def copy(self) -> "DecayedSums":
        return replace(self, count=self.count.copy(), damage=self.damage.copy(), excess=self.excess.copy())

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
            fade = 0.5 ** ((step - self.origin) / half_life)
            self.count *= fade
            self.damage *= fade
            self.excess *= fade
            self.origin = step
        weight = 0.5 ** ((self.origin - step) / half_life)
        cell = visit * self.count.shape[1] + stratum
        np.add.at(self.count.reshape(-1), cell, weight)
        np.add.at(self.damage.reshape(-1), cell, weight * damage)
        # Later visits weigh nothing here.
        excess = np.where(visit == FIRST_VISITS, excess, 0.0)
        np.add.at(self.excess[0], stratum, weight * excess)
        np.add.at(self.excess[1], stratum, weight * excess * excess)
