"""A run is a fold over its journal: this is the state, and the one function that folds an event into it."""

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.damage import DAMAGE_OF, damage_rates
from replay_service.sampling.events import Configured, Event, Planned, Reported, Sealed
from replay_service.sampling.partition import Partition
from replay_service.sampling.run_config import RunConfig

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

FIRST_VISITS: Final = 0
LATER_VISITS: Final = 1


HELD_ROW = np.dtype([("sample_id", "<i8"), ("stratum", "<i4"), ("visit", "<i4"), ("damage", "<f8")])
"""What a report says of a sample, in the unit of the run's damage signal."""


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
    held: dict[int, np.ndarray] = field(default_factory=dict)
    """HELD_ROW of each step: in fenced mode, what was measured and no plan may know yet."""
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

    def awaited_before(self, step: int) -> list[int]:
        """The steps whose reports the plan of `step` must wait for; none unless the run is fenced."""
        fence = self.config.fence
        return [] if fence is None else sorted(each for each in self.pending if each <= step - fence)

    def what_plans_learn_from(self) -> "RunState":
        """A state that `pass_fence` may change while this one stays as it is."""
        recent = replace(self.recent, count=self.recent.count.copy(), damage=self.recent.damage.copy())
        return replace(self, recent=recent, held=dict(self.held))

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
    elif isinstance(event, Sealed):
        state.pending.pop(event.step, None)
    else:
        state.closed = True


def _fold_planned(state: RunState, step: int, rows: np.ndarray) -> None:
    assert step == state.next_step, f"plan of step {step} where step {state.next_step} was next"
    pass_fence(state, step)
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
        state.held.clear()
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
    state.totals.add(plan["stratum"].astype(np.int64), rows)
    damage = DAMAGE_OF[state.config.signal](rows, state.config.learnable_nats, state.config.delta_nats)
    measured = np.empty(len(rows), dtype=HELD_ROW)
    measured["sample_id"], measured["stratum"], measured["damage"] = plan["sample_id"], plan["stratum"], damage
    measured["visit"] = np.where(plan["times_drawn"] == 1, FIRST_VISITS, LATER_VISITS)
    if state.config.fence is None:
        _learn(state, step, measured)
    else:
        state.held[step] = np.concatenate([state.held.get(step, measured[:0]), measured])
    pending.rows = np.delete(pending.rows, index)
    if not len(pending.rows):
        del state.pending[step]


def pass_fence(state: RunState, step: int) -> None:
    """In fenced mode, learn what the plan of `step` may know: the reports of the steps up to the lag before it."""
    if state.config.fence is not None:
        for each in sorted(held for held in state.held if held <= step - state.config.fence):
            _learn(state, each, in_canonical_order(state.held.pop(each)))


def in_canonical_order(measured: np.ndarray) -> np.ndarray:
    """HELD_ROW in an order that does not depend on who reported first."""
    return measured[np.argsort(measured["sample_id"], kind="stable")]


def _learn(state: RunState, step: int, measured: np.ndarray) -> None:
    cell = (measured["visit"].astype(np.int64), measured["stratum"].astype(np.int64))
    state.recent.add(step, state.config.half_life_steps, cell, measured["damage"])
    state.policy_version += 1
