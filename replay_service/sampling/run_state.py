"""A run is a fold over its journal: this is the state, and the one function that folds an event into it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import groupby
from typing import Final

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.damage import DAMAGE_OF, damage_rates
from replay_service.sampling.events import Adopted, Configured, Created, Event, Planned, Reported, Sealed
from replay_service.sampling.run_config import RunConfig
from replay_service.sampling.walk import Walk

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

FIRST_VISITS: Final = 0
LATER_VISITS: Final = 1


HELD_ROW = np.dtype([("sample_id", "<i8"), ("stratum", "<i4"), ("visit", "<i4"), ("damage", "<f8")])
"""What a report says of a sample, in the unit of the run's damage signal."""


@dataclass(slots=True, eq=False)
class Pending:
    """The samples of one planned step that still await a report."""

    _planned: np.ndarray
    """PLANNED_ROW, sorted by sample_id. A sample drawn twice in one step stands once: it is measured once."""
    _sample_id: Int64Array
    _awaited: NDArray[np.bool_]
    num_awaited: int

    @classmethod
    def of(cls, rows: np.ndarray) -> "Pending":
        """All samples of a plan (PLANNED_ROW [n])."""
        sample_id, first = np.unique(rows["sample_id"], return_index=True)
        return cls(rows[first], sample_id, np.ones(len(first), dtype=bool), len(first))

    @property
    def rows(self) -> np.ndarray:
        """PLANNED_ROW [num_awaited], by sample_id."""
        return self._planned[self._awaited]

    def find(self, sample_id: Int64Array) -> Int64Array:
        """A handle of each sample id (int64 [n]) for `take`, or -1 where it does not await a report."""
        handle = self._sample_id.searchsorted(sample_id)
        # What would stand after the last sample is compared with the last one, and is not found.
        found = self._sample_id.take(handle, mode="clip") == sample_id
        found &= self._awaited.take(handle, mode="clip")
        handle[~found] = -1
        return handle

    def is_awaited(self, sample_id: Int64Array) -> NDArray[np.bool_]:
        """Which of these samples await a report, bool [n]; of equal ones the first."""
        handle, place = self.find(sample_id), np.arange(len(sample_id))
        # The last slot is that of handle -1. Of values for one slot the last one stays.
        first = np.empty(len(self._sample_id) + 1, dtype=np.int64)
        first[handle[::-1]] = place[::-1]
        awaited: NDArray[np.bool_] = (handle >= 0) & (first[handle] == place)
        return awaited

    def take(self, handle: Int64Array) -> np.ndarray:
        """The samples at these handles, PLANNED_ROW [n]; from now on they do not await a report."""
        self._awaited[handle] = False
        self.num_awaited -= len(handle)
        return self._planned[handle]


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
    origin: int = 0
    """The latest step reported; the sums are as seen from there."""

    @classmethod
    def zeros(cls, num_strata: int) -> "DecayedSums":
        return cls(np.zeros((2, num_strata)), np.zeros((2, num_strata)))

    def grow(self, num_strata: int) -> None:
        """Strata that stand at the end are new; nothing was reported of them."""
        more = num_strata - self.count.shape[1]
        self.count, self.damage = (np.pad(each, ((0, 0), (0, more))) for each in (self.count, self.damage))

    def add(self, step: int, half_life: float, visit: Int64Array, stratum: Int64Array, damage: Float64Array) -> None:
        if step > self.origin:
            fade = 0.5 ** ((step - self.origin) / half_life)
            self.count *= fade
            self.damage *= fade
            self.origin = step
        weight = 0.5 ** ((self.origin - step) / half_life)
        cell = visit * self.count.shape[1] + stratum
        np.add.at(self.count.reshape(-1), cell, weight)
        np.add.at(self.damage.reshape(-1), cell, weight * damage)


@dataclass(slots=True, eq=False)
class RunState:
    """Everything a run remembers: a few numbers a stratum, and the samples that still await a report."""

    config: RunConfig
    generation: int
    """The generation of the corpus that the run sees."""
    num_quantiles: int
    """Strata of a group; stratum k is quantile k % num_quantiles of group k // num_quantiles."""
    walk: Walk
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
    generation_since: int = 0
    """The step from which the run has seen its generation."""
    closed: bool = False

    @classmethod
    def initial(cls, created: Created) -> "RunState":
        num, walk = len(created.sizes), Walk.over(np.array(created.sizes, dtype=np.int64))
        totals, recent = Totals.zeros(num), DecayedSums.zeros(num)
        return cls(created.config, created.generation, created.num_quantiles, walk, totals, recent)

    @property
    def num_strata(self) -> int:
        return len(self.walk.epoch)

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
        damage, count = (
            sums.sum(axis=0).reshape(-1, self.num_quantiles) for sums in (self.recent.damage, self.recent.count)
        )
        return damage_rates(damage, count, self.config.prior_weight).ravel()

    def probabilities(self) -> Float64Array:
        """The probability of each stratum under the run's policy, float64 [num_strata], summing to one."""
        return self.config.make_policy().probabilities(self.walk.sizes, self.damage_rates())


def fold(state: RunState, event: Event) -> None:
    """Advance `state` by one event of its journal. It reads nothing else, so every fold of a journal agrees.

    The event has been checked before it was written down; an event that does not fit the state is an error of ours.
    """
    if isinstance(event, Planned):
        _fold_planned(state, event.step, event.rows)
    elif isinstance(event, Reported):
        _fold_reported(state, event.step, [event.rows])
    elif isinstance(event, Configured):
        _fold_configured(state, event.config)
    elif isinstance(event, Adopted):
        _fold_adopted(state, event.generation, event.sizes)
    elif isinstance(event, Sealed):
        state.pending.pop(event.step, None)
    else:
        state.closed = True


def fold_all(state: RunState, events: Iterable[Event]) -> None:
    """Fold events one after the other; neighbouring reports of one step at once, which comes to the same."""
    for step, neighbours in groupby(events, lambda event: event.step if isinstance(event, Reported) else None):
        if step is None:
            for event in neighbours:
                fold(state, event)
        else:
            _fold_reported(state, step, [event.rows for event in neighbours if isinstance(event, Reported)])


def _fold_planned(state: RunState, step: int, rows: np.ndarray) -> None:
    assert step == state.next_step, f"plan of step {step} where step {state.next_step} was next"
    pass_fence(state, step)
    state.walk.advance(state.config.seed, np.sort(rows["stratum"]).astype(np.int64))
    state.next_step = step + 1
    state.pending.pop(step - state.config.report_window_steps, None)
    if len(rows):
        state.pending[step] = Pending.of(rows)


def _fold_configured(state: RunState, config: RunConfig) -> None:
    if config.ratio != state.config.ratio:
        state.ratio_since = state.next_step
    if _damage_unit(config) != _damage_unit(state.config):
        state.recent = DecayedSums.zeros(state.num_strata)
        state.held.clear()
    state.config = config
    state.policy_version += 1


def _fold_adopted(state: RunState, generation: int, sizes: tuple[int, ...]) -> None:
    state.walk.grow(np.array(sizes, dtype=np.int64))
    state.totals.grow(len(sizes))
    state.recent.grow(len(sizes))
    state.generation, state.generation_since = generation, state.next_step
    state.policy_version += 1


def _damage_unit(config: RunConfig) -> tuple[str, float, float]:
    """Sums of damage in different units do not add up, so a change of unit begins them anew."""
    return config.signal, config.learnable_nats, config.delta_nats


def _fold_reported(state: RunState, step: int, reports: Sequence[np.ndarray]) -> None:
    """Reports (REPORTED_ROW) of one step: the additions of folding one after the other, in their order."""
    rows = reports[0] if len(reports) == 1 else np.concatenate(reports)
    pending = state.pending[step]
    handle = pending.find(np.ascontiguousarray(rows["sample_id"]))
    assert (handle >= 0).all(), f"a report of step {step} names a sample that awaits none"
    plan = pending.take(handle)
    if not pending.num_awaited:
        del state.pending[step]
    was_measured = rows["num_tokens"] > 0
    if not was_measured.all():
        plan, rows = plan[was_measured], rows[was_measured]
    if len(rows):
        num_reports = sum(bool(each["num_tokens"].any()) for each in reports)
        _fold_measured(state, step, plan, rows, num_reports)


def _fold_measured(state: RunState, step: int, plan: np.ndarray, rows: np.ndarray, num_reports: int) -> None:
    """Losses of the samples in `plan` (PLANNED_ROW), row by row."""
    stratum, visit = plan["stratum"].astype(np.int64), _visit_of(plan)
    state.totals.add(stratum, rows)
    damage = DAMAGE_OF[state.config.signal](rows, state.config.learnable_nats, state.config.delta_nats)
    if state.config.fence is None:
        state.recent.add(step, state.config.half_life_steps, visit, stratum, damage)
        state.policy_version += num_reports
    else:
        measured = np.empty(len(rows), dtype=HELD_ROW)
        measured["sample_id"], measured["stratum"] = plan["sample_id"], stratum
        measured["visit"], measured["damage"] = visit, damage
        state.held[step] = np.concatenate([state.held.get(step, measured[:0]), measured])


def _visit_of(plan: np.ndarray) -> Int64Array:
    return np.where(plan["times_drawn"] == 1, FIRST_VISITS, LATER_VISITS)


def pass_fence(state: RunState, step: int) -> None:
    """In fenced mode, learn what the plan of `step` may know: the reports of the steps up to the lag before it."""
    if state.config.fence is not None:
        for each in sorted(held for held in state.held if held <= step - state.config.fence):
            measured = in_canonical_order(state.held.pop(each))
            visit, stratum = measured["visit"].astype(np.int64), measured["stratum"].astype(np.int64)
            damage = np.ascontiguousarray(measured["damage"])
            state.recent.add(each, state.config.half_life_steps, visit, stratum, damage)
            state.policy_version += 1


def in_canonical_order(measured: np.ndarray) -> np.ndarray:
    """HELD_ROW in an order that does not depend on who reported first."""
    return measured[np.argsort(measured["sample_id"], kind="stable")]
