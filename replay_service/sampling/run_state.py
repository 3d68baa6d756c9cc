"""A run is a fold over its journal: this is the state, and the one function that folds an event into it."""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.damage import DAMAGE_OF, damage_rates
from replay_service.sampling.events import Configured, Event, Planned, Reported
from replay_service.sampling.partition import Partition
from replay_service.sampling.run_config import RunConfig

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

FIRST_VISITS: Final = 0
LATER_VISITS: Final = 1


@dataclass(slots=True, eq=False)
class Pending:
    """The samples of one planned step that still await a report."""

    rows: np.ndarray
    """PLANNED_ROW, sorted by sample_id. A sample drawn twice in one step stands once: it is measured once."""

    @classmethod
    def of(cls, rows: np.ndarray) -> "Pending":
        _, first = np.unique(rows["sample_id"], return_index=True)
        return cls(rows[first])

    def find(self, sample_id: Int64Array) -> Int64Array:
        """The index in `rows` of each sample id, or -1 where it does not await a report."""
        index = np.searchsorted(self.rows["sample_id"], sample_id)
        index[index == len(self.rows)] = 0
        return np.where(self.rows["sample_id"][index] == sample_id, index, -1)


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
        np.add.at(self.samples, stratum, 1)
        np.add.at(self.tokens, stratum, rows["num_tokens"])
        np.add.at(self.flips, stratum, rows["num_flips"])
        np.add.at(self.loss_nats, stratum, rows["loss_nats"])
        np.add.at(self.excess_nats, stratum, rows["loss_nats"] - rows["base_loss_nats"])


@dataclass(slots=True, eq=False)
class DecayedSums:
    """Recent damage of each stratum. A report of step s weighs 0.5 ** ((origin - s) / half_life).

    First visits and later ones are kept apart: a later visit tells of a sample that the run has trained on.
    """

    count: Float64Array
    """float64 [2, num_strata]: first visits, later visits."""
    damage: Float64Array
    """float64 [2, num_strata]."""
    origin: int = 0
    """The latest step reported; the sums are as seen from there."""

    @classmethod
    def zeros(cls, num_strata: int) -> "DecayedSums":
        return cls(np.zeros((2, num_strata)), np.zeros((2, num_strata)))

    def add(self, step: int, half_life: float, cell: tuple[Int64Array, Int64Array], damage: Float64Array) -> None:
        if step > self.origin:
            fade = 0.5 ** ((step - self.origin) / half_life)
            self.count *= fade
            self.damage *= fade
            self.origin = step
        weight = 0.5 ** ((self.origin - step) / half_life)
        np.add.at(self.count, cell, weight)
        np.add.at(self.damage, cell, weight * damage)


@dataclass(slots=True, eq=False)
class RunState:
    """Everything a run remembers: a few numbers a stratum, and the samples that still await a report."""

    config: RunConfig
    partition: Partition
    cursors: Int64Array
    """int64 [num_strata]: draws so far. cursor // size is the stratum's epoch, cursor % size its place in it."""
    totals: Totals
    recent: DecayedSums
    pending: dict[int, Pending] = field(default_factory=dict)
    next_step: int = 0
    """The first step that has no plan yet."""
    policy_version: int = 1
    ratio_since: int = 0
    """The step from which the injection ratio has been what it is."""
    closed: bool = False

    @classmethod
    def initial(cls, config: RunConfig, partition: Partition) -> "RunState":
        num = partition.num_strata
        return cls(config, partition, np.zeros(num, dtype=np.int64), Totals.zeros(num), DecayedSums.zeros(num))

    def damage_rates(self) -> Float64Array:
        """alpha of each stratum, float64 [num_strata]."""
        shape = (len(self.partition.groups), self.partition.num_quantiles)
        damage, count = (sums.sum(axis=0).reshape(shape) for sums in (self.recent.damage, self.recent.count))
        return damage_rates(damage, count, self.config.prior_weight).ravel()

    def probabilities(self) -> Float64Array:
        """The probability of each stratum under the run's policy, float64 [num_strata], summing to one."""
        return self.config.make_policy().probabilities(self.partition.sizes, self.damage_rates())


def fold(state: RunState, event: Event) -> None:
    """Advance `state` by one event of its journal. It reads nothing else, so every fold of a journal agrees.

    The event has been checked before it was written down; an event that does not fit the state is an error of ours.
    """
    if isinstance(event, Planned):
        _fold_planned(state, event.step, event.rows)
    elif isinstance(event, Reported):
        _fold_reported(state, event.step, event.rows)
    elif isinstance(event, Configured):
        _fold_configured(state, event.config)
    else:
        state.closed = True


def _fold_planned(state: RunState, step: int, rows: np.ndarray) -> None:
    assert step == state.next_step, f"plan of step {step} where step {state.next_step} was next"
    np.add.at(state.cursors, rows["stratum"], 1)
    state.next_step = step + 1
    state.pending.pop(step - state.config.report_window_steps, None)
    if len(rows):
        state.pending[step] = Pending.of(rows)


def _fold_configured(state: RunState, config: RunConfig) -> None:
    if config.ratio != state.config.ratio:
        state.ratio_since = state.next_step
    if _damage_unit(config) != _damage_unit(state.config):
        state.recent = DecayedSums.zeros(state.partition.num_strata)
    state.config = config
    state.policy_version += 1


def _damage_unit(config: RunConfig) -> tuple[str, float, float]:
    """Sums of damage in different units do not add up, so a change of unit begins them anew."""
    return config.signal, config.learnable_nats, config.delta_nats


def _fold_reported(state: RunState, step: int, rows: np.ndarray) -> None:
    pending = state.pending[step]
    index = pending.find(rows["sample_id"])
    assert (index >= 0).all(), f"report of step {step} names a sample that awaits none"
    plan = pending.rows[index]
    stratum = plan["stratum"].astype(np.int64)
    visit = np.where(plan["times_drawn"] == 1, FIRST_VISITS, LATER_VISITS)
    config = state.config
    damage = DAMAGE_OF[config.signal](rows, config.learnable_nats, config.delta_nats)
    state.totals.add(stratum, rows)
    state.recent.add(step, config.half_life_steps, (visit, stratum), damage)
    state.policy_version += 1
    pending.rows = np.delete(pending.rows, index)
    if not len(pending.rows):
        del state.pending[step]
