"""Simulated jobs of which the true forgetting is known, and answers to the injection ratio.

Each is a differential equation of the mean forgetting F over the corpus, which begins at 0. Strata lose a share of it
each, and samples differ from their stratum as those of a real model do: by more where more is forgotten, and skewed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.controller import ForgettingBudget
from replay_service.sampling.events import Event, Planned, Reported
from replay_service.sampling.fold import fold, fold_all
from replay_service.sampling.plan import adjustment_due, last_before_decision, plan_steps
from replay_service.sampling.run_state import RunState
from tests.sampling.worlds import created_of, initial_state, partition_of_sizes, report_of

Float64Array = NDArray[np.float64]

HALF_LIFE: Final = 20
BUDGET: Final = 0.15
"""Nats per token; plants are scaled by it."""
BATCH: Final = 64
SETTLED: Final = 4 * HALF_LIFE
"""The first step that is judged."""
NUM_STEPS: Final = 16 * HALF_LIFE
_SIZES: Final = [4000] * 16
_OF_STRATUM: Final = np.repeat([0.9, 1.9, 0.7, 0.5], 4)
"""What each stratum loses, relative to the mean."""
_SKEW: Final = 0.4
_NUM_TOKENS: Final = 64
_WINDOW: Final = 4
"""Steps that are planned, measured and folded at once."""

Motion = Callable[[float, float, int], float]
"""By how much forgetting changes in a step: of forgetting, the injection ratio, and the step."""


@dataclass(frozen=True, slots=True)
class Plant:
    """A kind of job.

    Attributes:
        name: of the kind.
        motion: the differential equation.
        noise: standard deviation of a sample around its stratum, as a share of what the stratum has lost.
        late_domain: the domain that loses nothing at first, and as much as it does elsewhere after ten half-lives.
    """

    name: str
    motion: Motion
    noise: float = 0.6
    late_domain: int | None = None

    def forgotten(self, ratio: float, num_steps: int = NUM_STEPS) -> Float64Array:
        """Forgetting at each step under a constant ratio, float64 [num_steps]."""
        lost, found = 0.0, np.empty(num_steps)
        for step in range(num_steps):
            found[step] = lost
            lost = max(0.0, lost + self.motion(lost, ratio, step))
        return found

    def of_strata(self, lost: float, step: int) -> Float64Array:
        """What each stratum has lost at a step, where the mean is `lost`; float64 [num_strata]."""
        of_stratum = _OF_STRATUM.copy()
        if self.late_domain is not None:
            of_stratum[4 * self.late_domain : 4 * self.late_domain + 4] *= min(1.0, step / (10 * HALF_LIFE))
        found: Float64Array = lost * of_stratum / of_stratum.mean()
        return found

    def least_ratio(self, budget: float) -> float:
        """The least constant ratio under which forgetting is within the budget after four half-lives."""
        low, high = 1e-4, 0.5
        for _ in range(24):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if self.forgotten(middle)[SETTLED:].max() <= budget else (middle, high)
        return high


def tending(
    to: Callable[[float], float], lag: float, at_least: float, drift: Callable[[int], float] = lambda step: 1.0
) -> Motion:
    """Forgetting tends to a multiple of `to(ratio)`, and comes 63 % of the way in `lag` half-lives.

    The multiple makes `at_least` the ratio that tends to the budget, as long as `drift` is one.
    """
    scale, pace = BUDGET / to(at_least), 1 - math.exp(-1 / (lag * HALF_LIFE))
    return lambda lost, ratio, step: (scale * drift(step) * to(ratio) - lost) * pace


def power(elasticity: float) -> Callable[[float], float]:
    return lambda ratio: float(ratio**-elasticity)


def law(exponent: float) -> Callable[[float], float]:
    """As the forgetting law says: what is forgotten levels off where the ratio is small."""
    return lambda ratio: float((1 + 60 * ratio) ** -exponent)


def repaired(pace: float, of_lost: float, of_ratio: float, at_least: float) -> Motion:
    """Training forgets `pace` budgets a half-life, and rehearsal repairs the more, the more is lost."""
    each = pace * BUDGET / HALF_LIFE
    return lambda lost, ratio, step: each * (1 - (ratio / at_least) ** of_ratio * (lost / BUDGET) ** of_lost)


CHOSEN_ON: Final = (
    *(
        Plant(f"elasticity {elasticity}, lag {lag}", tending(power(elasticity), lag, 0.04))
        for elasticity in (0.26, 0.45, 0.67)
        for lag in (0.4, 1.0, 2.5)
    ),
    Plant("by the law", tending(law(0.8), 0.5, 0.04)),
    Plant("by the law, slowly", tending(law(0.8), 2.0, 0.04)),
    Plant("levels off", tending(power(0.45), 0.7, 0.03, lambda step: 1 - 0.4 * math.exp(-step / 100))),
    Plant("grows on", tending(power(0.45), 0.7, 0.02, lambda step: (1 + step / HALF_LIFE) ** 0.2)),
    Plant("falls", tending(power(0.45), 0.7, 0.05, lambda step: 0.7 + 0.3 * math.exp(-step / 80))),
    Plant("repaired in proportion", repaired(1.2, 1.0, 1.0, 0.04)),
    Plant("repaired by the square", repaired(1.2, 2.0, 1.0, 0.04)),
    Plant("repaired by the root of the ratio", repaired(1.2, 1.5, 0.5, 0.04)),
)
"""Plants on which the constants of `replay_service.sampling.response` were chosen."""

FRESH: Final = (
    Plant("elasticity 0.35, lag 0.7", tending(power(0.35), 0.7, 0.05)),
    Plant("elasticity 0.55, lag 1.6", tending(power(0.55), 1.6, 0.03)),
    Plant("elasticity 0.4, domains drift", tending(power(0.4), 0.8, 0.04), late_domain=1),
    Plant("much noise", tending(power(0.5), 1.0, 0.05), noise=0.9),
    Plant("by a flat law, levels off", tending(law(0.6), 0.6, 0.03, lambda step: 1 - 0.3 * math.exp(-step / 60))),
    Plant("by the law, waves", tending(law(0.7), 1.0, 0.04, lambda step: 1 + 0.05 * math.sin(step / 40))),
    Plant("repaired, of both", repaired(1.0, 1.4, 0.7, 0.05)),
    Plant("repaired, slow forgetting", repaired(0.6, 1.2, 0.6, 0.03)),
)
"""Plants that nothing was chosen on."""


@dataclass(slots=True)
class Life:
    """An `auto` run of a plant."""

    state: RunState
    journal: list[Event] = field(default_factory=list)
    forgotten: Float64Array = field(default_factory=lambda: np.empty(0))
    """True forgetting at each step."""
    ratio: Float64Array = field(default_factory=lambda: np.empty(0))
    """The injection ratio of each step."""

    def turns(self) -> int:
        """How often a rise of the ratio was followed by a fall, or a fall by a rise."""
        moves = np.sign(np.diff(self.ratio))
        moves = moves[moves != 0]
        return int((moves[1:] != moves[:-1]).sum())

    def folded_again(self) -> RunState:
        """The state that another fold of the journal gives."""
        again = RunState.initial(created_of(_SIZES, 4, self.state.config))
        for event in self.journal:
            fold(again, event)
        return again


def live(plant: Plant, budget: ForgettingBudget, seed: int, num_steps: int = NUM_STEPS, **config: object) -> Life:
    """A run of a plant, through the real planner and the real fold."""
    settings = {"global_batch_size": BATCH, "half_life_steps": float(HALF_LIFE), "seed": seed, **config}
    state = initial_state(_SIZES, num_quantiles=4, injection_ratio="auto", budget=budget, **settings)
    partition, random = partition_of_sizes(_SIZES, 4), np.random.default_rng([seed, 4])
    life, lost, losses, ratios = Life(state), 0.0, list[float](), list[float]()
    while state.next_step < num_steps:
        adjusted = adjustment_due(state)
        if adjusted is not None:
            fold(state, adjusted)
            life.journal.append(adjusted)
            assert adjustment_due(state) is None
        last = min(num_steps - 1, state.next_step + _WINDOW - 1)
        plans = plan_steps(state, partition, last_before_decision(state, last))
        fold_all(state, plans)
        reports = []
        for plan in plans:
            losses.append(lost)
            ratios.append(float(state.ratio))
            if len(plan.rows):
                reports.append(_report(plan, lost, plant, random))
            lost = max(0.0, lost + plant.motion(lost, ratios[-1], plan.step))
        fold_all(state, reports)
        life.journal += [*plans, *reports]
    life.forgotten, life.ratio = np.array(losses), np.array(ratios)
    return life


def _report(plan: Planned, lost: float, plant: Plant, random: np.random.Generator) -> Reported:
    of_sample = plant.of_strata(lost, plan.step)[plan.rows["stratum"]]
    skewed = np.exp(_SKEW * random.standard_normal(len(of_sample)) - _SKEW**2 / 2) - 1
    excess = of_sample * (1 + plant.noise / _SKEW * skewed) + 0.02 * random.standard_normal(len(of_sample))
    flips = random.binomial(_NUM_TOKENS, 0.02 + 0.3 * (1 - np.exp(-np.maximum(0.0, of_sample))))
    return report_of(
        plan.step,
        plan.rows["sample_id"],
        loss=(2.0 + excess).tolist(),
        base_loss=2.0,
        num_tokens=_NUM_TOKENS,
        num_flips=flips.tolist(),
    )
