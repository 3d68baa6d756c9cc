"""Studies of which the truth is known, and a tiny real one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from replay_trainer.study.outcomes import Paired
from tests.trainer.worlds import SEQ_LEN, write_text

NUM_ROWS = 6400
RATIOS = (0.0, 0.0125, 0.025, 0.05, 0.1)


@dataclass(frozen=True)
class SimulatedArm:
    """Forgets as uniform rehearsal with `times` as many rows does, at a target loss that is higher by `extra`."""

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


JOB = """\
model = '{model}'
output = "out"
num_steps = 4
global_batch_size = 4
learning_rate = 1e-2
precision = "float32"

[data]
heldout_pretraining = "text/held"
domain_column = "domain"
target = "text/stories/train.parquet"
heldout_target = "text/stories/heldout.parquet"
seq_len = {seq_len}

[rehearsal]
service_url = "{url}"
corpus = "with-topk"
run = "study"
policy = "uniform"
injection_ratio = "0.25"
{more}
"""
STUDY = """\
[study]
seeds = [0, 1]
cells_at_once = 1

[[study.targets]]
name = "stories"
target = "text/stories/train.parquet"
heldout_target = "text/stories/heldout.parquet"

[[study.arms]]
name = "none"
rehearsal = false

[[study.arms]]
name = "uniform 25 %"

[[study.arms]]
name = "KL, weight 3"
rehearsal.rehearsal_loss = "distill"
rehearsal.rehearsal_weight = 3

[[study.arms]]
name = "half of the way"
interpolates = "none"
tuned_share = 0.5
"""


def write_study(folder: Path, model: Path, service_url: str, study: str = STUDY, more: str = "") -> Path:
    """A tiny study's file, with its text; `study` is its section `[study]`, `more` further sections of its job."""
    for name in ("stories", "poems"):
        write_text(folder / "text" / name / "train.parquet")
        write_text(folder / "text" / name / "heldout.parquet", 8)
    texts = [f"the dog of number {i} saw {i * i} birds" for i in range(12)]
    held = pa.table({"text": texts, "domain": ["news", "law", "web"] * 4})
    (folder / "text" / "held").mkdir(parents=True, exist_ok=True)
    pq.write_table(held, folder / "text" / "held" / "all.parquet")
    path = folder / "study.toml"
    path.write_text(JOB.format(model=model, url=service_url, seq_len=SEQ_LEN, more=more) + study)
    return path
