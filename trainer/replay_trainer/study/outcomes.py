"""What came of the cells of a study: result files, and the same as arrays.

Shapes: A arms, P pairs of a target and a seed, D domains, 2 halves of the held-out rows.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from replay_trainer.study.answers import Answers
from replay_trainer.study.measuring import NUM_HALVES, Measured

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cost:
    """What an arm took in one cell; `num_parameters` are the model's."""

    num_rows: int = 0
    num_rehearsed_rows: int = 0
    num_tokens: int = 0
    num_rehearsed_tokens: int = 0
    training_s: float = 0.0
    flops: float = 0.0
    num_parameters: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One arm on one target with one seed.

    Attributes:
        is_uniform_cross_entropy: whether the job is plain uniform rehearsal, or none at all, and nothing else, so that
            it lies on the frontier that arms are compared with.
        failure: why there is nothing measured; None where there is.
        domains: pretraining domains of the held-out text, [D].
        pretraining: what changed on them.
        target_text: what changed on the held-out text of the target; of one domain.
        estimate: what the service says of forgetting, as GET /v1/runs/{run}/stats gives it.
        learning_rate: of the job.
        uniform_weight: weight of a rehearsed row, where the job tunes all weights and rehearses uniformly with
            cross-entropy or not at all; None for others. `replay-service plan` fits its laws to the former.
        lora_rank: of the job's adapters; None where it tunes all weights.
        answers: to the study's questions; None where it has none.
    """

    arm: str
    target: str
    seed: int
    is_uniform_cross_entropy: bool
    cost: Cost
    failure: str | None = None
    domains: tuple[str, ...] = ()
    pretraining: Measured | None = None
    target_text: Measured | None = None
    estimate: dict[str, Any] | None = None
    learning_rate: float | None = None
    uniform_weight: float | None = None
    lora_rank: int | None = None
    answers: Answers | None = None

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Outcome":
        parts: dict[str, Any] = {
            name: Measured(**values[name]) for name in ("pretraining", "target_text") if values[name] is not None
        }
        if (answers := values.get("answers")) is not None:
            parts["answers"] = Answers.from_json(answers)
        return cls(**{**values, **parts, "cost": Cost(**values["cost"]), "domains": tuple(values["domains"])})

    def forgetting(self) -> Float64Array:
        """Loss minus base loss, float64 [D, 2], nats per token; NaN where a half has no tokens."""
        return _rise(self.pretraining)

    def target_loss(self) -> float:
        """Nats per token."""
        assert self.target_text is not None
        return float(np.sum(self.target_text.nats) / np.sum(self.target_text.num_tokens))

    def share_of_flips(self) -> float:
        """Of the base model's right predictions, how many are wrong now."""
        assert self.pretraining is not None
        return float(np.sum(self.pretraining.num_flips) / max(1, np.sum(self.pretraining.num_base_right)))

    def share_of_gains(self) -> float:
        """Of the base model's wrong predictions, how many are right now."""
        assert self.pretraining is not None
        num_wrong = np.sum(self.pretraining.num_tokens) - np.sum(self.pretraining.num_base_right)
        return float(np.sum(self.pretraining.num_gains) / max(1, num_wrong))


def _rise(measured: Measured | None) -> Float64Array:
    assert measured is not None
    tokens = np.array(measured.num_tokens, dtype=np.float64)
    rise: Float64Array = np.full(tokens.shape, np.nan)
    np.divide(np.subtract(measured.nats, measured.base_nats), tokens, out=rise, where=tokens > 0)
    return rise


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, whatever is killed meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


def write_outcomes(path: Path, outcomes: Iterable[Outcome]) -> None:
    write_whole(path, json.dumps([asdict(each) for each in outcomes]))


def read_outcomes(paths: Iterable[Path]) -> list[Outcome]:
    """The outcomes of all cells that are finished."""
    found = (json.loads(path.read_text()) for path in paths if path.exists())
    return [Outcome.from_json(each) for values in found for each in values]


@dataclass(frozen=True, slots=True)
class Paired:
    """Outcomes of arms over the same pairs of a target and a seed.

    Attributes:
        arms: [A], in the order of the file.
        targets: the names of targets.
        target_of_pair: int64 [P], an index into `targets`.
        domains: [D].
        target_loss: float64 [A, P], nats per token.
        forgetting: float64 [A, P, D, 2], nats per token.
        rows: float64 [A, P], rehearsed rows.
        is_frontier: bool [A], uniform cross-entropy or no rehearsal, at one learning rate.
        outcomes: [A][P], whence all this is.
    """

    arms: tuple[str, ...]
    targets: tuple[str, ...]
    target_of_pair: NDArray[np.int64]
    domains: tuple[str, ...]
    target_loss: Float64Array
    forgetting: Float64Array
    rows: Float64Array
    is_frontier: NDArray[np.bool_]
    outcomes: tuple[tuple[Outcome, ...], ...]

    @classmethod
    def of(cls, outcomes: Iterable[Outcome], arms: Sequence[str], targets: Sequence[str]) -> "Paired | None":
        """The arms that failed in no cell, over the pairs that all of them have; None where there is no such pair."""
        found = {(each.arm, each.target, each.seed): each for each in outcomes}
        failed = {each.arm for each in found.values() if each.failure is not None}
        whole = [arm for arm in arms if arm not in failed and any(arm == key[0] for key in found)]
        seeds = sorted({seed for _, _, seed in found})
        pairs = [
            (target, seed)
            for target in targets
            for seed in seeds
            if whole and all((arm, target, seed) in found for arm in whole)
        ]
        if not pairs:
            return None
        table = tuple(tuple(found[arm, target, seed] for target, seed in pairs) for arm in whole)
        kept = tuple(dict.fromkeys(target for target, _ in pairs))
        return cls(
            arms=tuple(whole),
            targets=kept,
            target_of_pair=np.array([kept.index(target) for target, _ in pairs]),
            domains=table[0][0].domains,
            target_loss=np.array([[each.target_loss() for each in row] for row in table]),
            forgetting=np.array([[each.forgetting() for each in row] for row in table]),
            rows=np.array([[float(each.cost.num_rehearsed_rows) for each in row] for row in table]),
            is_frontier=_on_one_frontier([row[0] for row in table]),
            outcomes=table,
        )

    def on(self, targets: Iterable[str]) -> "Paired | None":
        """The same of some targets alone."""
        return Paired.of((each for row in self.outcomes for each in row), self.arms, [*targets])


def _on_one_frontier(outcomes: Sequence[Outcome]) -> NDArray[np.bool_]:
    """Which of the arms differ from one another in their injection ratio alone, bool [A].

    Of several learning rates, or ranks of adapters, it is those of the first arm that rehearses: others are another
    method.
    """
    plain = [each for each in outcomes if each.is_uniform_cross_entropy]
    rehearsing = [each for each in plain if each.cost.num_rehearsed_rows]
    tuned_as = {(each.learning_rate, each.lora_rank) for each in (rehearsing or plain)[:1]}
    return np.array(
        [each.is_uniform_cross_entropy and (each.learning_rate, each.lora_rank) in tuned_as for each in outcomes]
    )


def write_parquet(path: Path, outcomes: Iterable[Outcome]) -> None:
    """One row for each outcome and domain, and one for each outcome and target, whose `domain` is null."""
    rows = [row for each in outcomes for row in _rows_of(each)]
    part = path.with_name(f"{path.name}.part")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), part)
    part.replace(path)


SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("target", pa.string()),
        ("seed", pa.int64()),
        ("domain", pa.string()),
        ("half", pa.int8()),
        ("base_nats", pa.float64()),
        ("nats", pa.float64()),
        ("num_tokens", pa.int64()),
        ("num_base_right", pa.int64()),
        ("num_flips", pa.int64()),
        ("num_gains", pa.int64()),
        ("num_rows", pa.int64()),
        ("num_rehearsed_rows", pa.int64()),
        ("num_trained_tokens", pa.int64()),
        ("num_rehearsed_tokens", pa.int64()),
        ("training_s", pa.float64()),
        ("flops", pa.float64()),
        ("estimate_nats", pa.float64()),
        ("estimate_low", pa.float64()),
        ("estimate_high", pa.float64()),
        ("num_parameters", pa.int64()),
        ("learning_rate", pa.float64()),
        ("uniform_weight", pa.float64()),
        ("lora_rank", pa.int64()),
        ("failure", pa.string()),
    ]
)


def _rows_of(outcome: Outcome) -> Iterable[dict[str, Any]]:
    cost, estimate = asdict(outcome.cost), outcome.estimate or {}
    cost["num_trained_tokens"] = cost.pop("num_tokens")
    shared = {"arm": outcome.arm, "target": outcome.target, "seed": outcome.seed, "failure": outcome.failure, **cost}
    shared |= {name: getattr(outcome, name) for name in ("learning_rate", "uniform_weight", "lora_rank")}
    shared |= {f"estimate_{name}": estimate.get(name) for name in ("nats", "low", "high")}
    if outcome.failure is not None:
        yield shared
    parts = [(outcome.domains, outcome.pretraining), ((None,), outcome.target_text)]
    for domains, measured in parts:
        for place, domain in enumerate(domains if measured is not None else ()):
            for half in range(NUM_HALVES):
                sums = {each.name: getattr(measured, each.name)[place][half] for each in fields(Measured)}
                yield {**shared, "domain": domain, "half": half, **sums}
