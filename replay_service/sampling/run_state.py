"""The state of a run: a fold over the events of its journal (`replay_service.sampling.fold`)."""

import itertools
import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.cursors import Cursors
from replay_service.sampling.damage import LEAST_DAMAGE, damage_rates
from replay_service.sampling.events import Created, stacked
from replay_service.sampling.forgetting import FirstVisits, Forgetting
from replay_service.sampling.held_back import HeldBack
from replay_service.sampling.injection import as_decimal, rows_due
from replay_service.sampling.latest import LatestReports
from replay_service.sampling.pending import Pending
from replay_service.sampling.response import RatioCourse
from replay_service.sampling.run_config import RunConfig
from replay_service.sampling.sums import FIRST_VISITS, DecayedSums, Totals
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
    """The first step that the present policy is in force for."""
    carry: Fraction = Fraction(0)
    """In [0, 1): the part of a row that the planned steps were due to rehearse and have not."""
    generation_since: int = 0
    """The step from which the run has seen its generation."""
    closed: bool = False
    job_end: int = -1
    """The first step after the end of the job, as the job said; -1: it has not said that it has ended."""
    trained: TrainedTotals = field(default_factory=TrainedTotals)
    """As far as the ranks have reported it; no plan depends on it."""
    _probabilities: tuple[int, Float64Array] | None = field(default=None, init=False)
    """A policy version and its probabilities: a cache, which follows from the other fields."""

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
        """The injection ratio in force: the configured one, or the controller's. A schedule multiplies it."""
        return self.ratios[-1].ratio

    @property
    def ratio_since(self) -> int:
        """The first step that `ratio` is in force for."""
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
        """The reports that forgetting is estimated from, as far as plans know them."""
        return FirstVisits(
            reports=self.latest[FIRST_VISITS].rows.copy(),
            step=self.recent.origin,
            sizes=self.cursors.sizes.copy(),
            chance=self.probabilities() * self.cursors.share_of_first_visits(),
            num_quantiles=self.num_quantiles,
            half_life=self.config.half_life_steps,
            prior_weight=self.config.prior_weight,
        )

    def repeat_share(self) -> float:
        """The share of the present draws that repeat a sample which the run has drawn before."""
        return 1.0 - float(self.probabilities() @ self.cursors.share_of_first_visits())

    def all_visits(self) -> FirstVisits:
        """The same of first and later visits alike. They tell of less: rehearsal repairs the samples that it visits."""
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
        """A copy for `pass_fence` to change, so that this state stays as it is; this state itself without a fence."""
        if self.config.fence is None:
            return self
        latest = self.latest[0].copy(), self.latest[1].copy()
        return replace(self, recent=self.recent.copy(), latest=latest, held=dict(self.held))

    def has_damage(self) -> bool:
        """Whether damage was reported, so that the damage rates mean something."""
        return bool(self.recent.damage.sum() > LEAST_DAMAGE)

    def damage_rates(self) -> Float64Array:
        """alpha of each stratum, float64 [num_strata]; 1 everywhere before any damage was reported."""
        seen = self.recent.seen
        count, damage = ((seen[i] + seen[i + 1]).reshape(-1, self.num_quantiles) for i in (0, 2))
        return damage_rates(damage, count, self.config.prior_weight).ravel()

    def probabilities(self) -> Float64Array:
        """The probability of each stratum under the run's policy: float64 [num_strata], read-only, summing to one.

        They are computed once for each version of the policy.
        """
        if self._probabilities is None or self._probabilities[0] != self.policy_version:
            probabilities = self.config.make_policy().probabilities(self.cursors.sizes, self.damage_rates())
            probabilities.flags.writeable = False
            self._probabilities = self.policy_version, probabilities
        return self._probabilities[1]


def whole_rows(state: RunState, steps: range, carry: Fraction) -> tuple[list[int], Fraction]:
    """How many rows each of these steps rehearses at the state's ratio, and the fraction of a row carried on after."""
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


def in_canonical_order(measured: np.ndarray) -> np.ndarray:
    """HELD_ROW in an order that does not depend on who reported first."""
    return measured.take(np.argsort(measured["sample_id"], kind="stable"))
