"""Real jobs that stop now and then to measure what is true, beside what the service estimates."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from replay_service.language.model import load_model
from replay_service.language.precision import Precision
from replay_trainer.client import ReplayClient
from replay_trainer.config import TrainConfig
from replay_trainer.job.loop import fine_tune
from replay_trainer.job.ray_train import preflight
from tests.evidence.truth import Rows, losses, means
from tests.trainer.worlds import AloneWorker


@dataclass(frozen=True, slots=True)
class Point:
    """One step of a job.

    Attributes:
        estimate: the service's `forgetting` of the corpus.
        estimates: the same of each domain.
        truth: Mean of each kind of rows ("corpus", "heldout"), as a dictionary.
        truths: the same of each domain: kind, then domain.
    """

    run: str
    step: int
    num_rehearsed: int
    estimate: dict[str, Any]
    estimates: dict[str, dict[str, Any]]
    truth: dict[str, dict[str, float]]
    truths: dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True, slots=True)
class Measured:
    """Rows to measure, and their losses by the base model, float64 [n]."""

    rows: Rows
    base_loss: Any

    @classmethod
    def by(cls, model: Any, rows: Rows, precision: Precision) -> "Measured":
        return cls(rows, losses(model, rows.packed, precision))


class TrackingWorker(AloneWorker):
    """A job of one process, whose checkpoints measure the model as it is then."""

    def __init__(
        self, config: TrainConfig, precision: Precision, measured: dict[str, Measured], tell: Callable[[int], None]
    ) -> None:
        super().__init__()
        self.points: list[Point] = []
        assert config.rehearsal is not None
        self._rehearsal, self._precision, self._measured, self._tell = config.rehearsal, precision, measured, tell
        self._model = load_model(config.model)

    def save(self, state: dict[str, Any], step: int) -> None:
        self._model.load_state_dict(state["model"])
        truth, truths = dict[str, Any](), dict[str, Any]()
        for kind, each in self._measured.items():
            lost = losses(self._model, each.rows.packed, self._precision) - each.base_loss
            whole, of_domain = means(each.rows, lost)
            truth[kind], truths[kind] = asdict(whole), {name: asdict(mean) for name, mean in of_domain.items()}
        with ReplayClient(self._rehearsal.service_url) as client:
            stats = client.stats(self._rehearsal.run)
        estimates = stats["forgetting"], stats["forgetting_by_domain"]
        self.points.append(Point(self._rehearsal.run, step, stats["rows_rehearsed"], *estimates, truth, truths))
        self._tell(step)


def track(
    config: TrainConfig, measured: dict[str, Measured], results: Path, tell: Callable[[int], None] = lambda _: None
) -> list[Point]:
    """The points of a job, from its file in `results` if it is finished; else it is run from its beginning."""
    assert config.rehearsal is not None
    path = points_file(results, config.rehearsal.run)
    if not path.exists():
        results.mkdir(parents=True, exist_ok=True)
        precision = preflight(config)
        worker = TrackingWorker(config, precision, measured, tell)
        began = time.monotonic()
        fine_tune(config, precision, worker)
        partial = path.with_name(f".{path.name}")
        partial.write_text("".join(json.dumps(asdict(each)) + "\n" for each in worker.points))
        partial.rename(path)
        print(f"{config.rehearsal.run}: {time.monotonic() - began:.0f} s", flush=True)
    return read_points(path)


def points_file(results: Path, run: str) -> Path:
    """Where the points of a job are; it is there when the job is finished."""
    return results / f"{run}.jsonl"


def read_points(path: Path) -> list[Point]:
    return [Point(**json.loads(line)) for line in path.read_text().splitlines()]
