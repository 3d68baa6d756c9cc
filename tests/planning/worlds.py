"""Simulated runs of which the law is known."""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from replay_service.planning.runs import Float64Array, Runs

SIZES = (1e6, 4e6, 2e7)
LENGTHS = (3e5, 2e6, 1e7)
RATIOS = (0.0, 0.002, 0.01, 0.03, 0.05)


@dataclass(frozen=True)
class World:
    """Both laws with their coefficients, and noise of logarithms."""

    A: float = 2.0
    B: float = 800.0
    alpha: float = 0.4
    beta: float = 0.3
    target_A: float = 60.0
    target_alpha: float = 0.1
    target_beta: float = 0.2
    floor: float = 0.8
    slope: float = 0.4
    noise: float = 0.05
    target_noise: float = 0.003

    def forgetting(self, size: float | Float64Array, tokens: float | Float64Array, x: float | Float64Array) -> Any:
        return self.A * np.power(tokens, self.beta) / np.power((1 + self.B * np.asarray(x)) * size, self.alpha)

    def target_loss(self, size: Float64Array, tokens: Float64Array, ratio: Float64Array) -> Float64Array:
        reducible = self.target_A / (np.power(size, self.target_alpha) * np.power(tokens, self.target_beta))
        found: Float64Array = reducible + self.floor + self.slope * ratio
        return found

    def ratio(self, size: float, tokens: float, budget_nats: float) -> float:
        """The least ratio within the budget."""
        return float(((self.A * tokens**self.beta / budget_nats) ** (1 / self.alpha) / size - 1) / self.B)

    def runs(
        self,
        seed: int = 0,
        sizes: tuple[float, ...] = SIZES,
        lengths: tuple[float, ...] = LENGTHS,
        ratios: tuple[float, ...] = RATIOS,
        weights: tuple[float, ...] = (1.0,),
        times: int = 1,
    ) -> Runs:
        """A run at each combination, `times` times."""
        rng = np.random.default_rng(seed)
        grid = np.meshgrid(sizes, lengths, ratios, weights, indexing="ij")
        size, tokens, ratio, weight = (np.tile(each.ravel(), times) for each in grid)
        forgetting = self.forgetting(size, tokens, weight * ratio) * np.exp(self.noise * rng.standard_normal(len(size)))
        loss = self.target_loss(size, tokens, weight * ratio) * np.exp(
            self.target_noise * rng.standard_normal(len(size))
        )
        base = 4.0 - 0.1 * np.log(size)
        return Runs(size, tokens, ratio, weight, base, base + forgetting, loss)


def with_outliers(runs: Runs, places: list[int], factor: float) -> Runs:
    """The same runs, of which some forgot `factor` times as much."""
    forgetting = runs.forgetting.copy()
    forgetting[places] *= factor
    return replace(runs, pretraining_loss=runs.base_loss + forgetting)


def table_of(runs: Runs) -> Any:
    return pa.table({each.name: getattr(runs, each.name) for each in fields(runs)})


def write_runs(runs: Runs, path: Path) -> Path:
    """In the format that the file's ending says."""
    table = table_of(runs)
    if path.suffix == ".csv":
        csv.write_csv(table, path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        pq.write_table(table, path)
    return path
