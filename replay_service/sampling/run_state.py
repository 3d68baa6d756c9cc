"""A run is a fold over its journal: this is the state, and the one function that folds an event into it."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import groupby
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.cursors import Cursors
from replay_service.sampling.damage import DAMAGE_OF, LEAST_DAMAGE, damage_rates
from replay_service.sampling.events import (
    Adjusted,
    Adopted,
    Configured,
    Created,
    Event,
    Finished,
    Planned,
    Reported,
    Sealed,
    Trained,
    stacked,
)
from replay_service.sampling.forgetting import FirstVisits, Forgetting
from replay_service.sampling.held_back import HeldBack
from replay_service.sampling.injection import as_decimal, exact_ratio, rows_due
from replay_service.sampling.latest import REPORT_ROW, LatestReports
from replay_service.sampling.pending import Awaited, Pending
from replay_service.sampling.response import RatioCourse
from replay_service.sampling.run_config import RunConfig
from replay_service.sampling.step_slices import StepSlice, step_slices
from replay_service.sampling.sums import FIRST_VISITS, LATER_VISITS, DecayedSums, Totals
from replay_service.sampling.trained import TrainedTotals

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

HELD_ROW = np.dtype(
    [
        ("sample_id", "<i8"),
        ("stratum", "<i4"),
        ("visit", "<i4"),
        ("chance", "<f8"),
        ("damage", "<f8"),
        ("excess_nats", "<f8"),
    ]
)
"""What a report says of a sample: damage in the unit of the run's signal, and the rest as in REPORT_ROW."""

MOST_RATIOS: Final = 64
"""How many changes of the ratio are kept: four a half-life by default, and forgetting responds to the latest ones."""


class RatioSince(NamedTuple):
    """An injection ratio, and the first step that it was in force for."""

    step: int
    ratio: Fraction


@dataclass(slots=True, eq=False)
class RunState:
    """Everything a run remembers: a few numbers a stratum, and the samples that still await a report."""

    config: RunConfig
    generation: int
    """The generation of the corpus that the run sees."""
    num_quantiles: int
    """Strata of a group; stratum k is quantile k % num_quantiles of group k // num_quantiles."""
    cursors: Cursors
    totals: Totals
    recent: DecayedSums
    latest: tuple[LatestReports, LatestReports]
    """Of first visits, and of later ones."""
    pending: dict[int, Pending] = field(default_factory=dict)
    held: dict[int, np.ndarray] = field(default_factory=dict)
    """HELD_ROW of each step: in fenced mode, what was measured and no plan may know yet."""
    next_step: int = 0
    """The first step that has no plan yet."""
    policy_version: int = 1
    ratios: tuple[RatioSince, ...] = (RatioSince(0, Fraction(0)),)
    """The latest changes of the injection ratio, at most `MOST_RATIOS`, oldest first; at least the present one."""
    steady_since: int = 0
    """The step from which the policy has been what it is."""
    carry: Fraction = Fraction(0)
    """In [0, 1): the part of a row that the planned steps were due to rehearse and have not."""
    generation_since: int = 0
    """The step from which the run has seen its generation."""
    closed: bool = False
    job_end: int = -1
    """Where the job said that it has ended: the first step that is none of its. -1: it has not said so."""
    trained: TrainedTotals = field(default_factory=TrainedTotals)
    """As far as the ranks have reported it; no plan depends on it."""
    _probabilities: tuple[int, Float64Array] | None = field(default=None, init=False)
    """Of a version of the policy; follows from the rest."""

    @classmethod
    def initial(cls, created: Created) -> "RunState":
        num, held_back = len(created.sizes), HeldBack(created.config.held_back)
        cursors = Cursors.over(np.array(created.sizes, dtype=np.int64), held_back)
        totals, recent = Totals.zeros(num), DecayedSums.zeros(num, created.config.half_life_steps)
        latest = LatestReports.of(), LatestReports.of()
        state = cls(created.config, created.generation, created.num_quantiles, cursors, totals, recent, latest)
        state.ratios = (RatioSince(0, created.config.ratio),)
        return state

    @property
    def ratio(self) -> Fraction:
        """The injection ratio that is written, or that the controller has chosen; a schedule bends it."""
        return self.ratios[-1].ratio

    @property
    def ratio_since(self) -> int:
        """The step from which it has been what it is."""
        return self.ratios[-1].step

    def set_ratio(self, ratio: Fraction) -> None:
        """Take another injection ratio from the first step that has no plan."""
        before = self.ratios if self.ratio_since < self.next_step else self.ratios[:-1]
        self.ratios = (*before, RatioSince(self.next_step, ratio))[-MOST_RATIOS:]

    def ratio_course(self) -> RatioCourse:
        """The injection ratio over the latest steps."""
        steps, ratios = (np.array([float(each[i]) for each in self.ratios]) for i in (0, 1))
        return RatioCourse(steps, ratios)

    @property
    def num_strata(self) -> int:
        return len(self.cursors.epoch)

    @property
    def is_finished(self) -> bool:
        """Whether the job has ended: nobody has asked for a later step since it said so."""
        return self.next_step <= self.job_end

    @property
    def rows_rehearsed(self) -> int:
        """How many rows the planned steps rehearse."""
        return int(self.cursors.num_draws.sum())

    @property
    def rows_due_so_far(self) -> Fraction:
        """How many rows the ratios that were in force ask the planned steps to rehearse; at most one row more."""
        return self.rows_rehearsed + self.carry

    def rows_due(self, step: int) -> Fraction:
        """How many rows the step is due to rehearse; what it does is a whole number, and the rest is carried on."""
        config = self.config
        return rows_due(config.schedule.at(step, self.ratio), config.injection_mode, config.global_batch_size)

    def ratio_now(self) -> str:
        """The injection ratio of the first step that has no plan, as a decimal string."""
        if self.config.schedule.curve == "constant" and not self.config.is_auto:
            return self.config.injection_ratio
        return as_decimal(self.config.schedule.at(self.next_step, self.ratio))

    def first_visits(self) -> FirstVisits:
        """What tells of forgetting, as far as plans know."""
        return FirstVisits(
            reports=self.latest[FIRST_VISITS].rows.copy(),
            step=self.recent.origin,
            sizes=self.cursors.sizes.copy(),
            chance=self.probabilities() * self.cursors.share_of_first_visits(),
            num_quantiles=self.num_quantiles,
            half_life=self.config.half_life_steps,
            prior_weight=self.config.prior_weight,
        )

    def all_visits(self) -> FirstVisits:
        """The same of first and later visits alike: where rehearsal repairs what it visits, it tells of too little."""
        first = self.cursors.share_of_first_visits()
        parts = []
        for latest, share in zip(self.latest, (first, 1.0 - first), strict=True):
            rows = latest.rows[share[latest.rows["stratum"]] > 0.0]
            # What was drawn of both kinds together is as likely as the stratum.
            rows["chance"] /= share[rows["stratum"]]
            parts.append(rows)
        return replace(self.first_visits(), reports=stacked(parts), chance=self.probabilities())

    def forgetting(self) -> Forgetting:
        """How much of the corpus the model has forgotten, as far as plans know."""
        return self.first_visits().of_corpus()

    def awaited_before(self, step: int) -> list[int]:
        """The steps whose reports the plan of `step` must wait for; none unless the run is fenced."""
        fence = self.config.fence
        return [] if fence is None else sorted(each for each in self.pending if each <= step - fence)

    def what_plans_learn_from(self) -> "RunState":
        """A state that `pass_fence` may change while this one stays as it is; this one, if that changes nothing."""
        if self.config.fence is None:
            return self
        latest = self.latest[0].copy(), self.latest[1].copy()
        return replace(self, recent=self.recent.copy(), latest=latest, held=dict(self.held))

    def has_damage(self) -> bool:
        """Whether damage was reported, so that the rates tell of it."""
        return bool(self.recent.damage.sum() > LEAST_DAMAGE)

    def damage_rates(self) -> Float64Array:
        """alpha of each stratum, float64 [num_strata]; 1 everywhere before any damage was reported."""
        seen = self.recent.seen
        count, damage = ((seen[i] + seen[i + 1]).reshape(-1, self.num_quantiles) for i in (0, 2))
        return damage_rates(damage, count, self.config.prior_weight).ravel()

    def probabilities(self) -> Float64Array:
        """The probability of each stratum under the run's policy, float64 [num_strata], summing to one; not to change.

        They are computed once for each version of the policy.
        """
        if self._probabilities is None or self._probabilities[0] != self.policy_version:
            probabilities = self.config.make_policy().probabilities(self.cursors.sizes, self.damage_rates())
            probabilities.flags.writeable = False
            self._probabilities = self.policy_version, probabilities
        return self._probabilities[1]


def fold(state: RunState, event: Event) -> None:
    """Advance `state` by one event of its journal. It reads nothing else, so every fold of a journal agrees.

    The event has been checked before it was written down; an event that does not fit the state is an error of ours.
    """
    if isinstance(event, Planned):
        _fold_planned(state, [event])
    elif isinstance(event, Reported):
        _fold_reported(state, [event])
    elif isinstance(event, Configured):
        _fold_configured(state, event.config)
    elif isinstance(event, Adopted):
        _fold_adopted(state, event.generation, event.sizes)
    elif isinstance(event, Adjusted):
        state.set_ratio(exact_ratio(event.injection_ratio))
    elif isinstance(event, Sealed):
        state.pending.pop(event.step, None)
    elif isinstance(event, Trained):
        state.trained.add(event.rank, event.step + 1, event.counts)
    elif isinstance(event, Finished):
        state.job_end = event.end
    else:
        state.closed = True


def fold_all(state: RunState, events: Iterable[Event]) -> None:
    """Fold events one after the other.

    Neighbouring plans are folded at once, and so are neighbouring reports, which comes to the same.
    """
    for kind, neighbours in groupby(events, type):
        alike = list(neighbours)
        if kind is Planned:
            _fold_planned(state, [event for event in alike if isinstance(event, Planned)])
        elif kind is Reported:
            _fold_reported(state, [event for event in alike if isinstance(event, Reported)])
        else:
            for event in alike:
                fold(state, event)


def _fold_planned(state: RunState, plans: Sequence[Planned]) -> None:
    steps = range(state.next_step, state.next_step + len(plans))
    assert [plan.step for plan in plans] == list(steps), f"no plans of the steps from {state.next_step} on"
    _, state.carry = whole_rows(state, steps, state.carry)
    stratum = np.concatenate([plan.rows["stratum"] for plan in plans])
    state.cursors.advance(state.config.seed, np.sort(stratum).astype(np.int64))
    state.pending.update(Pending.of_steps({plan.step: plan.rows for plan in plans}))
    for step in steps:
        pass_fence(state, step)
        state.pending.pop(step - state.config.report_window_steps, None)
    state.next_step = steps.stop


def whole_rows(state: RunState, steps: range, carry: Fraction) -> tuple[list[int], Fraction]:
    """How many rows each of these steps rehearses, at the ratio that the state has; and what is carried on after."""
    if state.config.schedule.curve != "constant":
        numbers = []
        for step in steps:
            whole, carry = divmod(carry + state.rows_due(step), 1)
            numbers.append(whole)
        return numbers, carry
    due = state.rows_due(steps.start)
    unit = math.lcm(due.denominator, carry.denominator)
    grains, rest = (each.numerator * (unit // each.denominator) for each in (due, carry))
    ends = [rest + grains * i for i in range(len(steps) + 1)]
    return [end // unit - begin // unit for begin, end in itertools.pairwise(ends)], Fraction(ends[-1] % unit, unit)


def _fold_configured(state: RunState, config: RunConfig) -> None:
    if (config.injection_ratio, config.budget.start()) != (state.config.injection_ratio, state.config.budget.start()):
        state.set_ratio(config.ratio)
    if any(getattr(config, name) != getattr(state.config, name) for name in _STEERING):
        state.steady_since = state.next_step
    if _damage_unit(config) != _damage_unit(state.config):
        state.recent = DecayedSums.zeros(state.num_strata, config.half_life_steps)
        state.held.clear()
    elif config.half_life_steps != state.config.half_life_steps:
        state.recent.change_half_life(config.half_life_steps)
    state.config = config
    state.policy_version += 1


def _fold_adopted(state: RunState, generation: int, sizes: tuple[int, ...]) -> None:
    state.cursors.grow(np.array(sizes, dtype=np.int64))
    state.totals.grow(len(sizes))
    state.recent.grow(len(sizes))
    state.generation, state.generation_since = generation, state.next_step
    state.policy_version += 1


_STEERING: Final = (
    "schedule",
    "policy",
    "sharpness",
    "floor",
    "signal",
    "learnable_nats",
    "delta_nats",
    "prior_weight",
)
"""Settings of which a change may make forgetting take another course than the injection ratio accounts for."""


def _damage_unit(config: RunConfig) -> tuple[str, float, float]:
    """Sums of damage in different units do not add up, so a change of unit begins them anew."""
    return config.signal, config.learnable_nats, config.delta_nats


def _fold_reported(state: RunState, reports: Sequence[Reported]) -> None:
    """Reports, one or more: the additions of folding one after the other, in their order."""
    rows, slices = stacked([each.rows for each in reports]), _slices_of(reports)
    plan = Awaited(state.pending, slices, np.ascontiguousarray(rows["sample_id"])).take()
    was_measured, num_reports = rows["num_tokens"] > 0, len(reports)
    if np.count_nonzero(was_measured) < len(rows):
        step, report = (
            np.repeat(each, [len(every.rows) for every in reports])[was_measured]
            for each in ([each.step for each in reports], np.arange(num_reports))
        )
        slices, num_reports = step_slices(step), int(np.count_nonzero(np.bincount(report)))
        plan, rows = plan[was_measured], rows[was_measured]
    _fold_measured(state, slices, plan, rows)
    if state.config.fence is None:
        state.policy_version += num_reports


def _slices_of(reports: Sequence[Reported]) -> list[StepSlice]:
    """The slices of steps in the rows of reports."""
    slices, begin = list[StepSlice](), 0
    for each in reports:
        end = begin + len(each.rows)
        if slices and slices[-1].step == each.step:
            slices[-1] = StepSlice(each.step, slices[-1].begin, end)
        else:
            slices.append(StepSlice(each.step, begin, end))
        begin = end
    return slices


def _fold_measured(state: RunState, slices: Sequence[StepSlice], plan: np.ndarray, rows: np.ndarray) -> None:
    """Losses of the samples in `plan` (PLANNED_ROW), row by row."""
    measured = np.empty(len(rows), dtype=HELD_ROW)
    measured["sample_id"], measured["stratum"] = plan["sample_id"], plan["stratum"]
    measured["visit"] = plan["times_drawn"] != 1
    measured["chance"] = plan["probability"] * state.cursors.sizes[plan["stratum"]]
    measured["excess_nats"] = rows["loss_nats"] - rows["base_loss_nats"]
    measured["damage"] = DAMAGE_OF[state.config.signal](rows, state.config.learnable_nats, state.config.delta_nats)
    state.totals.add(measured["stratum"].astype(np.int64), rows, measured["excess_nats"])
    if state.config.fence is None:
        _learn(state, slices, measured)
        return
    for step, begin, end in slices:
        state.held[step] = stacked([state.held.get(step, measured[:0]), measured[begin:end]])


def _learn(state: RunState, slices: Sequence[StepSlice], measured: np.ndarray) -> None:
    """Let plans know what was measured: HELD_ROW [n], the rows of each step as `runs` say."""
    visit, stratum = measured["visit"].astype(np.int64), measured["stratum"].astype(np.int64)
    state.recent.add(slices, visit, stratum, measured["damage"])
    reports = np.empty(len(measured), dtype=REPORT_ROW)
    for step, begin, end in slices:
        reports["step"][begin:end] = step
    for name in ("stratum", "chance", "excess_nats"):
        reports[name] = measured[name]
    is_later = visit > 0
    if not np.count_nonzero(is_later):
        state.latest[FIRST_VISITS].add(reports)
        return
    state.latest[FIRST_VISITS].add(reports[~is_later])
    state.latest[LATER_VISITS].add(reports[is_later])


def pass_fence(state: RunState, step: int) -> None:
    """In fenced mode, learn what the plan of `step` may know: the reports of the steps up to the lag before it."""
    if state.config.fence is None:
        return
    passing = sorted(held for held in state.held if held <= step - state.config.fence)
    if passing:
        parts = [in_canonical_order(state.held.pop(each)) for each in passing]
        measured, ends = stacked(parts), [*itertools.accumulate(map(len, parts))]
        _learn(state, list(map(StepSlice, passing, [0, *ends], ends)), measured)
        state.policy_version += len(passing)


def in_canonical_order(measured: np.ndarray) -> np.ndarray:
    """HELD_ROW in an order that does not depend on who reported first."""
    return measured.take(np.argsort(measured["sample_id"], kind="stable"))
