"""Simulated runs of which the true forgetting is known, through the real planner and the real fold.

A world says how much a sample that the run has never rehearsed has lost, by stratum and step: that is the truth. What a
report says of a sample is its stratum's loss at that step plus noise, less what rehearsal has repaired of it.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.events import REPORTED_ROW, Adopted, Configured, Planned, Reported
from replay_service.sampling.fold import fold, fold_all
from replay_service.sampling.forgetting import Forgetting
from replay_service.sampling.partition import Extent, Partition
from replay_service.sampling.plan import adjustment_due, last_before_decision, plan_steps
from replay_service.sampling.run_config import Feedback, RunConfig
from replay_service.sampling.run_state import RunState
from replay_service.sampling.step_slices import step_slices
from tests.sampling.worlds import created_of

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

NUM_TOKENS: Final = 64
RECENT_STEPS: Final = 100.0
WINDOW: Final = 8
"""Steps that are planned, measured and folded at once."""
DEFAULTS: Final[dict[str, object]] = {"global_batch_size": 64, "injection_ratio": "0.05", "half_life_steps": 100.0}


@dataclass(frozen=True, slots=True)
class World:
    """How a kind of training forgets, how it is rehearsed, and how its reports come.

    Attributes:
        name: of the kind.
        levels: gives float64 [num_steps, num_strata], nats that a sample of each stratum has lost at each step, from a
            generator, the number of steps, and the numbers of domains and of quantiles.
        noise: gives float64 [n], by how much samples differ from their stratum; of mean zero.
        num_domains, num_quantiles: strata of the corpus.
        rows: the least and the most rows of a stratum.
        num_steps: of the run.
        checks: the steps after which an estimate is compared with the truth.
        config: of the run, beside the defaults of this module.
        delay: the most steps by which a report comes late; each rank has a delay of its own at every step.
        lost: the share of the reports that never come.
        num_ranks: at each step, cycled.
        wobble: standard deviation of what all samples of a step share, nats; it belongs to the truth.
        repaired: nats that a visit takes away from the visited sample.
        repair_steps: after how many steps half of that is back.
        eased: how much a visit lessens the loss of its whole stratum, of a stratum of average size, as a share.
        elasticity: where above 0, a stratum of which n times as many rows were drawn lately as by uniform draws at the
            first ratio has lost its level times n ** -elasticity. "Lately" is in about the last 100 steps.
        changes: what is changed after which step: settings of the run.
        growth: after which step every stratum grows by which factor.
        exception: why its intervals need not hold the truth as often as they say; empty where they must.
    """

    name: str
    levels: Callable[[np.random.Generator, int, int, int], Float64Array]
    noise: Callable[[np.random.Generator, int], Float64Array] = lambda random, n: 0.3 * random.standard_normal(n)
    num_domains: int = 6
    num_quantiles: int = 4
    rows: tuple[int, int] = (400, 4000)
    num_steps: int = 400
    checks: tuple[int, ...] = (151, 247, 399)
    config: dict[str, object] = field(default_factory=dict)
    delay: int = 0
    lost: float = 0.0
    num_ranks: tuple[int, ...] = (1,)
    wobble: float = 0.0
    repaired: float = 0.0
    repair_steps: float = 400.0
    eased: float = 0.0
    elasticity: float = 0.0
    changes: tuple[tuple[int, dict[str, object]], ...] = ()
    growth: tuple[int, float] | None = None
    exception: str = ""


@dataclass(slots=True)
class Coverage:
    """How often intervals held the truth."""

    num_held: int = 0
    num_told: int = 0
    num_asked: int = 0
    errors: list[float] = field(default_factory=list)
    half_widths: list[float] = field(default_factory=list)

    def add(self, found: Forgetting, truth: float) -> None:
        self.num_asked += 1
        if found.nats is not None and found.low is not None and found.high is not None:
            self.num_told += 1
            self.num_held += found.low <= truth <= found.high
            self.errors.append(found.nats - truth)
            self.half_widths.append((found.high - found.low) / 2)

    @property
    def share(self) -> float:
        """Of the intervals that were given, those that held the truth."""
        return self.num_held / max(1, self.num_told)


def coverage(world: "World", seeds: Iterable[int]) -> tuple[Coverage, Coverage]:
    """Of the whole corpus, and of its domains, over runs and checks of a world."""
    whole, domains = Coverage(), Coverage()
    for seed in seeds:
        for check in simulate(world, seed):
            visits = check.state.first_visits()
            whole.add(visits.of_corpus(), float(visits.sizes @ check.truth / visits.sizes.sum()))
            shape = (-1, visits.num_quantiles)
            lost = (visits.sizes * check.truth).reshape(shape).sum(axis=1) / visits.sizes.reshape(shape).sum(axis=1)
            for found, truth in zip(visits.of_domains(), lost.tolist(), strict=True):
                domains.add(found, truth)
    return whole, domains


@dataclass(frozen=True, slots=True)
class Check:
    """A run's state after a step, and the truth.

    Attributes:
        truth: float64 [num_strata], nats that each stratum has lost at that step.
        at_uniform: float64 [num_strata], the same, had as many rows been drawn in proportion to the sizes.
    """

    step: int
    state: RunState
    truth: Float64Array
    at_uniform: Float64Array


def simulate(world: World, seed: int) -> Iterator[Check]:
    """One run of a world; the state of a check goes on changing after the next one is asked for."""
    return _Simulated(world, seed).run()


class _Simulated:
    """One run, a window of steps at a time: they are planned and measured at once, and what has come is folded."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.random = world, np.random.default_rng([seed, 15])
        num_strata = world.num_domains * world.num_quantiles
        self.parts = [self.random.integers(*world.rows, num_strata)]
        self.partition = _partition(world, self.parts)
        config = RunConfig(**{**DEFAULTS, "seed": seed, **world.config})  # type: ignore[arg-type]
        self.state = RunState.initial(created_of(self.parts[0].tolist(), world.num_quantiles, config))
        self.levels = world.levels(self.random, world.num_steps, world.num_domains, world.num_quantiles)
        self.wobble = world.wobble * self.random.standard_normal(world.num_steps)
        self.eased = np.zeros(num_strata)
        self.recent = self.usual = RECENT_STEPS * float(self.state.rows_due(0)) * self.parts[0] / self.parts[0].sum()
        self.repaired: dict[int, tuple[float, int]] = {}
        self.late: list[tuple[int, Reported]] = []

    def run(self) -> Iterator[Check]:
        world, state = self.world, self.state
        for begin in range(0, world.num_steps, WINDOW):
            self._change(begin)
            plans = self._planned(begin + WINDOW - 1)
            last = begin + WINDOW - 1
            undrawn = self.levels[last] + self.wobble[last]
            level = undrawn * np.exp(-self.eased)
            at_uniform = undrawn * (self.recent.sum() / self.usual.sum()) ** -world.elasticity
            self.late += self._measured(plans)
            fold_all(state, [report for when, report in self.late if when <= last])
            self.late = [each for each in self.late if each[0] > last]
            if last in world.checks:
                yield Check(last, state, level, at_uniform)

    def _change(self, step: int) -> None:
        state, sizes = self.state, sum(self.parts)
        for when, changes in self.world.changes:
            if when == step:
                fold(state, Configured(step - 1, state.config.changed(**changes)))
        if self.world.growth is not None and self.world.growth[0] == step:
            self.parts.append((sizes * (self.world.growth[1] - 1.0)).astype(np.int64))
            self.partition = _partition(self.world, self.parts)
            fold(state, Adopted(step - 1, 2, tuple(sum(self.parts).tolist())))

    def _planned(self, last: int) -> list[Planned]:
        plans, state = list[Planned](), self.state
        while state.next_step <= last:
            adjusted = adjustment_due(state)
            if adjusted is not None:
                fold(state, adjusted)
            some = plan_steps(state, self.partition, last_before_decision(state, last))
            fold_all(state, some)
            plans += some
        return plans

    def _measured(self, plans: list[Planned]) -> list[tuple[int, Reported]]:
        """Reports of a window, and when they come."""
        world, random = self.world, self.random
        step = np.repeat([plan.step for plan in plans], [len(plan.rows) for plan in plans])
        _, first = np.unique(
            np.stack([step, np.concatenate([plan.rows["sample_id"] for plan in plans])]), axis=1, return_index=True
        )
        drawn, step = np.concatenate([plan.rows for plan in plans])[first], step[first]
        stratum = drawn["stratum"].astype(np.int64)
        lost = self.levels[step, stratum] * np.exp(-self.eased[stratum]) + self.wobble[step]
        excess = lost + world.noise(random, len(step)) - self._repaired(step, drawn["sample_id"])
        self._ease(stratum)
        rows = np.zeros(len(step), dtype=REPORTED_ROW)
        rows["sample_id"], rows["base_loss_nats"] = drawn["sample_id"], random.uniform(1.0, 4.0, len(step))
        rows["loss_nats"] = rows["base_loss_nats"] + excess
        share = 0.02 + 0.5 * (1.0 - np.exp(-np.maximum(lost, 0.0)))
        rows["num_tokens"], rows["num_flips"] = NUM_TOKENS, random.binomial(NUM_TOKENS, share)
        reports = []
        for each, begin, end in step_slices(step):
            num_ranks = world.num_ranks[each % len(world.num_ranks)]
            for rank in range(num_ranks):
                own = rows[begin:end][rank::num_ranks]
                if len(own) and random.random() >= world.lost:
                    reports.append((each + int(random.integers(0, world.delay + 1)), Reported(each, rank, own)))
        return reports

    def _ease(self, stratum: Int64Array) -> None:
        """Rehearsal of a stratum lessens what all of it has lost; half of that comes back in 40 steps."""
        share = self.state.cursors.sizes / self.state.cursors.sizes.mean()
        visits = np.bincount(stratum, minlength=len(share))
        if self.world.eased:
            self.eased = 0.5 ** (WINDOW / 40.0) * self.eased + self.world.eased * visits / share
        if self.world.elasticity:
            self.recent = math.exp(-WINDOW / RECENT_STEPS) * self.recent + visits
            self.eased = self.world.elasticity * np.log(self.recent / self.usual)

    def _repaired(self, step: Int64Array, ids: Int64Array) -> Float64Array:
        """What earlier visits have taken from these samples, nats; this visit takes more from then on."""
        repaired = np.zeros(len(ids))
        if self.world.repaired:
            for i, (now, each) in enumerate(zip(step.tolist(), ids.tolist(), strict=True)):
                amount, since = self.repaired.get(each, (0.0, now))
                repaired[i] = amount * 0.5 ** ((now - since) / self.world.repair_steps)
                self.repaired[each] = repaired[i] + self.world.repaired, now
        return repaired


def _partition(world: World, parts: list[Int64Array]) -> Partition:
    extents = []
    for segment, sizes in enumerate(parts):
        begins = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        extents += [Extent(k, segment, int(begins[k]), int(size)) for k, size in enumerate(sizes)]
    groups = tuple(f"domain-{i}" for i in range(world.num_domains))
    return Partition(groups, world.num_quantiles, tuple(sorted(extents)))


# Kinds of training


def _apart(random: np.random.Generator, num_domains: int, num_quantiles: int, scale: float = 0.1) -> Float64Array:
    """Differences between strata that stay, float64 [num_strata]."""
    by_domain, by_quantile = (scale * random.standard_normal(n) for n in (num_domains, num_quantiles))
    both = by_domain[:, None] + by_quantile[None, :]
    own: Float64Array = (both + 0.3 * scale * random.standard_normal(both.shape)).ravel()
    return own


def _per_stratum(of_domain: Float64Array, num_quantiles: int) -> Float64Array:
    return np.repeat(of_domain, num_quantiles, axis=-1)


def constant(random: np.random.Generator, steps: int, domains: int, quantiles: int) -> Float64Array:
    return np.tile(0.5 + _apart(random, domains, quantiles), (steps, 1))


def same_drift(random: np.random.Generator, steps: int, domains: int, quantiles: int) -> Float64Array:
    return _apart(random, domains, quantiles) + 0.003 * np.arange(steps)[:, None]


def some_drift(random: np.random.Generator, steps: int, domains: int, quantiles: int) -> Float64Array:
    slope = np.where(random.permutation(domains) < 2, 0.004, 0.0)
    return _apart(random, domains, quantiles) + np.arange(steps)[:, None] * _per_stratum(slope, quantiles)


def all_differ(random: np.random.Generator, steps: int, domains: int, quantiles: int) -> Float64Array:
    slope = random.uniform(-0.001, 0.005, domains) * 400 / max(400, steps)
    return 0.3 + _apart(random, domains, quantiles) + np.arange(steps)[:, None] * _per_stratum(slope, quantiles)


def saturating(random: np.random.Generator, steps: int, domains: int, quantiles: int) -> Float64Array:
    top, pace = random.uniform(0.5, 1.5, domains), random.uniform(40.0, 120.0, domains)
    grown = top * (1.0 - np.exp(-np.arange(steps)[:, None] / pace))
    return _apart(random, domains, quantiles) + _per_stratum(grown, quantiles)


def reversed_at(when: int) -> Callable[..., Float64Array]:
    def levels(random: np.random.Generator, steps: int, domains: int, quantiles: int) -> Float64Array:
        slope = random.uniform(0.003, 0.006, domains)
        step = np.arange(steps)[:, None]
        return _apart(random, domains, quantiles) + _per_stratum(
            slope * (np.minimum(step, when) - 0.7 * np.maximum(step - when, 0)), quantiles
        )

    return levels


def jump_at(when: int) -> Callable[..., Float64Array]:
    def levels(random: np.random.Generator, steps: int, domains: int, quantiles: int) -> Float64Array:
        height = random.uniform(0.2, 0.8, domains)
        return (
            0.2
            + _apart(random, domains, quantiles)
            + _per_stratum(height * (np.arange(steps)[:, None] >= when), quantiles)
        )

    return levels


def silent_then(when: int) -> Callable[..., Float64Array]:
    def levels(random: np.random.Generator, steps: int, domains: int, quantiles: int) -> Float64Array:
        drift = np.full(domains, 0.002)
        late = random.permutation(domains) == 0
        step = np.arange(steps)[:, None]
        grown = np.where(late, 0.006 * np.maximum(step - when, 0), drift * step)
        return 0.2 + _apart(random, domains, quantiles) + _per_stratum(grown, quantiles)

    return levels


def waves(random: np.random.Generator, steps: int, domains: int, quantiles: int) -> Float64Array:
    phase, size = random.uniform(0, 2 * np.pi, domains), random.uniform(0.1, 0.3, domains)
    wave = size * np.sin(2 * np.pi * np.arange(steps)[:, None] / 250.0 + phase)
    return 0.6 + _apart(random, domains, quantiles) + _per_stratum(wave, quantiles)


def wandering(random: np.random.Generator, steps: int, domains: int, quantiles: int) -> Float64Array:
    walk = np.cumsum(0.01 * random.standard_normal((steps, domains)), axis=0)
    return 0.5 + _apart(random, domains, quantiles) + _per_stratum(walk, quantiles)


def power_law(random: np.random.Generator, steps: int, domains: int, quantiles: int) -> Float64Array:
    scale, power = random.uniform(0.02, 0.08, domains), random.uniform(0.4, 0.8, domains)
    grown = scale * np.arange(1, steps + 1)[:, None] ** power
    return _apart(random, domains, quantiles) + _per_stratum(grown, quantiles)


def student(random: np.random.Generator, n: int) -> Float64Array:
    drawn: Float64Array = 0.15 * random.standard_t(2.2, n)
    return drawn


def lognormal(random: np.random.Generator, n: int) -> Float64Array:
    drawn: Float64Array = 0.2 * (np.exp(random.standard_normal(n)) - np.exp(0.5))
    return drawn


LONG_HALF_LIFE: Final[dict[str, object]] = {"half_life_steps": 500.0}

MANY_ROWS: Final[dict[str, object]] = {"injection_ratio": "0.5"}
RARELY: Final[dict[str, object]] = {"injection_ratio": "0.008"}
SHARP: Final[dict[str, object]] = {"floor": 0.0, "sharpness": 4.0}
TO_UNIFORM: Final[dict[str, object]] = {"injection_ratio": "0.15", "policy": "uniform"}
OFTEN: Final[dict[str, Any]] = {
    "rows": (40, 80),
    "num_steps": 2400,
    "checks": (407, 1207, 1807, 2399),
    "config": LONG_HALF_LIFE,
}

SKEW: Final = "of heavy tails the greatest losses are seldom sampled"
WOBBLE: Final = "a wobble of single steps can hardly be told from noise within a window"
SWIFT: Final = "a domain's window of 60 reports is as long as half a wave"
ABRUPT: Final = "a domain needs a dozen reports after the jump, and has half a report a step"
UNSEEN: Final = "with floor 0 a domain that was silent is hardly drawn, so its change is seen late"

WORLDS: Final = (
    World("constant level, strata differ", constant),
    World("the same drift everywhere", same_drift),
    World("two of six domains drift", some_drift),
    World("every domain drifts differently", all_differ),
    World("saturating growth", saturating),
    World("saturating, half-life 500", saturating, num_steps=200, checks=(63, 127, 199), config=LONG_HALF_LIFE),
    World("growth by a power of the step", power_law),
    World("drift that reversed", reversed_at(200), checks=(207, 247, 287, 399)),
    World("a jump", jump_at(200), checks=(207, 223, 263, 399), exception=ABRUPT),
    World("waves", waves, exception=SWIFT),
    World("random walk", wandering),
    World("visits ease their stratum, half a batch", all_differ, rows=(4000, 9000), config=MANY_ROWS, eased=0.01),
    World("a silent domain forgets late", silent_then(250), config=LONG_HALF_LIFE, checks=(247, 303, 399)),
    World("the same, floor 0, sharpness 4", silent_then(250), config=SHARP, checks=(247, 303, 399), exception=UNSEEN),
    World("uniform draws", all_differ, config={"policy": "uniform"}),
    World("excess loss, sharpness 2", some_drift, config={"signal": "excess_loss", "sharpness": 2.0}),
    World("one row in two steps", all_differ, num_steps=800, checks=(103, 407, 799), config=RARELY),
    World("12 reports in all", same_drift, num_steps=104, checks=(103,), config={"injection_ratio": "0.001875"}),
    World("32 rows a step", all_differ, rows=(4000, 9000), num_steps=120, checks=(23, 63, 119), config=MANY_ROWS),
    World("400 strata", all_differ, num_domains=50, num_quantiles=8),
    World("one domain", saturating, num_domains=1),
    World("heavy tails, Student's t of 2.2", all_differ, noise=student, exception=SKEW),
    World("lognormal", all_differ, noise=lognormal, exception=SKEW),
    World("steps wobble by 0.1, 3 rows a step", all_differ, wobble=0.1, exception=WOBBLE),
    World(
        "steps wobble by 0.1, 32 rows a step",
        all_differ,
        rows=(4000, 9000),
        config=MANY_ROWS,
        wobble=0.1,
        exception=WOBBLE,
    ),
    World("late reports, ranks come and go", all_differ, delay=12, num_ranks=(1, 2, 4, 3)),
    World("a third of the reports lost", all_differ, lost=0.33, num_ranks=(2,)),
    World("fenced", some_drift, config={"feedback": Feedback("fenced", 8)}),
    World("the corpus triples", all_differ, growth=(200, 3.0), checks=(191, 215, 303, 399)),
    World("another ratio and policy", all_differ, changes=((200, TO_UNIFORM),), checks=(199, 215, 303, 399)),
    World("seen five times", all_differ, **OFTEN),
    World("seen five times, visits repair", saturating, repaired=0.2, **OFTEN),
)
