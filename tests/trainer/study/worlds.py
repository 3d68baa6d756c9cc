"""Studies of which the truth is known, and a tiny real one."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from replay_trainer.study.outcomes import Paired

NUM_ROWS = 6400
RATIOS = (0.0, 0.0125, 0.025, 0.05, 0.1)


@dataclass(frozen=True)
class SimulatedArm:
    """An arm that forgets as uniform rehearsal with `times` as many rows, at a target loss that is higher by `extra`."""

    ratio: float
    times: float = 1.0
    extra: float = 0.0


@dataclass(frozen=True)
class World:
    """Forgetting follows the law F0 (1 + 300 p) ** -e on each target; seeds move all arms alike, and each a little.

    Shapes: T targets, D domains.
    """

    forgetting_T: NDArray[np.float64]
    """F0, without rehearsal."""
    elasticity: float = 0.4
    num_seeds: int = 5
    noise: float = 0.01
    shares_D: tuple[float, ...] = (0.6, 0.8, 1.0, 1.6)

    def curve(self, ratio: float, target: int) -> float:
        return float(self.forgetting_T[target] * (1 + 300 * ratio) ** -self.elasticity)

    def kept(self, arm: SimulatedArm) -> float:
        """The truth of `ArmSummary.kept`."""
        targets = range(len(self.forgetting_T))
        own = sum(self.curve(arm.times * arm.ratio, each) for each in targets)
        return 1 - own / sum(self.curve(arm.ratio, each) for each in targets)

    def study(self, arms: Mapping[str, SimulatedArm], seed: int) -> Paired:
        """One study: uniform rehearsal at all ratios, and these arms."""
        rng = np.random.default_rng(seed)
        whole = {f"uniform {each:.2%}": SimulatedArm(each) for each in RATIOS} | dict(arms)
        target_of_pair = np.repeat(np.arange(len(self.forgetting_T)), self.num_seeds)
        shared = np.exp(0.05 * rng.standard_normal(len(target_of_pair)))
        shape = (len(whole), len(target_of_pair))
        mean = np.array(
            [[self.curve(arm.times * arm.ratio, each) for each in target_of_pair] for arm in whole.values()]
        )
        mean *= shared * np.exp(self.noise * rng.standard_normal(shape))
        shares = np.array(self.shares_D) / np.mean(self.shares_D)
        halves = mean[..., None, None] * shares[:, None] + 0.02 * rng.standard_normal((*shape, len(shares), 2))
        loss = np.array([[2.0 + 0.3 * arm.ratio + arm.extra] * shape[1] for arm in whole.values()])
        return Paired(
            arms=tuple(whole),
            targets=tuple(f"target {each}" for each in range(len(self.forgetting_T))),
            target_of_pair=target_of_pair,
            domains=tuple(f"domain {each}" for each in range(len(shares))),
            target_loss=loss + 0.003 * (rng.standard_normal(shape) + 3 * rng.standard_normal(shape[1])),
            forgetting=halves,
            rows=np.array([[NUM_ROWS * arm.ratio] * shape[1] for arm in whole.values()]),
            is_frontier=np.array([name.startswith("uniform") for name in whole]),
            outcomes=(),
        )


NEAR_AND_FAR = World(np.array([0.5, 0.9, 1.7]))
