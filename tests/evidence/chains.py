"""Targets one after the other: each stage trains the model that the stage before it has left.

A stage's result is a file that is written whole. Stopped, `follow` goes on with the first stage that has none.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from replay_service.progress import duration, seconds_left
from replay_trainer.study.outcomes import write_whole

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Chain:
    """One arm with one seed.

    Attributes:
        folder: of its models and results; no other chain has it.
        start: the model that its first stage begins with.
        targets: one for each stage, in order.
    """

    arm: str
    seed: int
    folder: Path
    start: Path
    targets: tuple[str, ...]

    def output(self, stage: int) -> Path:
        return self.folder / f"{stage + 1}-{self.targets[stage]}"

    def model_before(self, stage: int) -> Path:
        """The model that a stage begins with."""
        return self.model_after(stage - 1) if stage else self.start

    def model_after(self, stage: int) -> Path:
        return self.output(stage) / "model"

    def result(self, stage: int) -> Path:
        """What was measured after a stage; it is there when the stage is finished."""
        return self.output(stage) / "result.json"

    def is_finished(self, stage: int) -> bool:
        return self.result(stage).exists()

    def rows(self) -> list[Row]:
        """What was measured after all stages that are finished."""
        found = [json.loads(self.result(each).read_text()) for each in range(self._num_finished())]
        return [row for rows in found for row in rows]

    def finish(self, stage: int, measured: Iterable[Row]) -> None:
        """Keep what was measured after a stage."""
        shared = {"arm": self.arm, "seed": self.seed, "stage": stage + 1, "target": self.targets[stage]}
        write_whole(self.result(stage), json.dumps([{**shared, **each} for each in measured]))

    def drop_models(self) -> None:
        """Delete the models that no stage begins with any more; that of the base stays."""
        num_finished = self._num_finished()
        needed = num_finished - 1 if num_finished < len(self.targets) else None
        for stage in range(num_finished):
            if stage != needed:
                shutil.rmtree(self.model_after(stage), ignore_errors=True)

    def _num_finished(self) -> int:
        stages = range(len(self.targets))
        return next((each for each in stages if not self.is_finished(each)), len(self.targets))


Train = Callable[[Chain, int], Iterable[Row]]
"""Trains a stage, leaves its model at `model_after`, and gives what was measured of it."""


def follow(chains: Sequence[Chain], train: Train, tell: Callable[[str], None]) -> list[Row]:
    """Train the stages that are not finished, one chain after the other; gives the rows of all of them."""
    stages = [(chain, stage) for chain in chains for stage in range(len(chain.targets))]
    left = [(chain, stage) for chain, stage in stages if not chain.is_finished(stage)]
    began = time.monotonic()
    for number, (chain, stage) in enumerate(left, start=1):
        chain.finish(stage, train(chain, stage))
        chain.drop_models()
        rest = seconds_left(time.monotonic() - began, number, len(left) - number)
        note = "" if rest is None else f", {duration(rest)} left"
        done = len(stages) - len(left) + number
        tell(f"{done}/{len(stages)} stages{note}: seed {chain.seed}, {chain.arm}, {chain.targets[stage]}")
    return [row for chain in chains for row in chain.rows()]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Raw results as a Parquet file, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    pq.write_table(pa.Table.from_pylist(list(rows)), part)
    part.replace(path)


def read_rows(path: Path) -> list[Row]:
    rows: list[Row] = pq.read_table(path).to_pylist()
    return rows


def whole_chains(rows: Sequence[Row], num_stages: int) -> list[Row]:
    """The rows of the chains of which all stages are measured."""
    last = {(each["arm"], each["seed"]) for each in rows if each["stage"] == num_stages}
    return [each for each in rows if (each["arm"], each["seed"]) in last]


def spread(values: Sequence[float], digits: int, scale: float = 1.0) -> str:
    """The mean, and in brackets the least and the greatest."""
    found = (sum(values) / len(values), min(values), max(values))
    mean, least, most = (round(scale * each, digits) or 0.0 for each in found)
    return f"{mean:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"
