"""The engine: the cells of a study as Ray tasks, each once, whatever is killed meanwhile."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.exceptions import RayError

from replay_service.errors import ReplayError
from replay_service.language.precision import Precision
from replay_service.ray_cluster import check_room, check_shared
from replay_service.ray_session import error_within
from replay_trainer.errors import InvalidTraining, TrainerError
from replay_trainer.job.ray_train import with_access
from replay_trainer.study.cell import Task, run_cell, score_base
from replay_trainer.study.cells import Cell, Study
from replay_trainer.study.checks import write_folder
from replay_trainer.study.outcomes import Outcome, read_outcomes

_LOOK_EVERY_S: Final = 1.0

OnCell = Callable[[Task], None]


@dataclass(frozen=True, slots=True)
class Engine:
    """A study on a cluster, or on this machine. Ray must run.

    Attributes:
        study: checked before.
        precision: of all cells.
        cells: those to train.
    """

    study: Study
    precision: Precision
    cells: tuple[Cell, ...]

    def tasks(self) -> list[Task]:
        """One for each cell, in the order in which they are trained."""
        study, settings = self.study, self.study.settings
        threads = max(1, int(settings.num_cpus))
        return [
            Task(cell, study.folder, self.precision, settings.heldout_rows, threads, study.choices)
            for cell in self.cells
        ]

    def run(self, on_cell: OnCell) -> None:
        """Train the cells that are not finished, and tell of each that is now.

        Raises:
            RayUnavailable: when no cell finds room, or a node does not share the study's folder.
            TrainerError: what a cell raised; the others are stopped, and those that are finished stay.
            BaseException: what interrupts it or `on_cell` raises, likewise.
        """
        write_folder(self.study)
        check_room([self._cell_needs], "a cell of this study", "lower num_cpus")
        check_shared(self.study.folder)
        left = [each for each in self.tasks() if not each.result.exists()]
        first_of_target = {each.base_scores: each for each in reversed(left) if not each.base_scores.exists()}
        for task in self._finished(score_base, list(first_of_target.values())):
            assert task.base_scores.exists(), "Ray's workers must see the study's folder"
        for task in self._finished(run_cell, left):
            on_cell(task)

    def _finished(self, work: Callable[[Task], None], tasks: Sequence[Task]) -> Iterator[Task]:
        """The tasks, as they finish; at most as many at once as the cluster has room for."""
        settings = self.study.settings
        remote = ray.remote(with_access(work)).options(
            num_cpus=settings.num_cpus, num_gpus=self._num_gpus, max_retries=settings.max_retries
        )
        waiting, running = list(tasks), dict[Any, Task]()
        try:
            while waiting or running:
                while waiting and len(running) < self._at_once():
                    task = waiting.pop(0)
                    running[remote.remote(task)] = task
                done, _ = ray.wait(list(running), timeout=_LOOK_EVERY_S)
                for reference in done:
                    _raise_failure(reference, running[reference])
                    yield running.pop(reference)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    @property
    def _cell_needs(self) -> dict[str, float]:
        needs = {"CPU": float(self.study.settings.num_cpus), "GPU": self._num_gpus}
        return {name: amount for name, amount in needs.items() if amount}

    @property
    def _num_gpus(self) -> float:
        return 1.0 if self.study.cells[0].job.use_gpu else 0.0

    def _at_once(self) -> int:
        settings, resources = self.study.settings, ray.cluster_resources()
        room = resources.get("CPU", 1.0) / settings.num_cpus
        if self._num_gpus:
            room = min(room, resources.get("GPU", 0.0) / self._num_gpus)
        return max(1, min(int(room), settings.cells_at_once or int(room)))


def finished(study: Study) -> list[Outcome]:
    """The outcomes so far."""
    return read_outcomes(study.folder / "results" / f"{cell.name}.json" for cell in study.cells)


def _raise_failure(reference: Any, task: Task) -> None:
    try:
        ray.get(reference)
    except RayError as error:
        cell = task.cell.title
        if (ours := error_within(error, TrainerError)) is not None:
            raise InvalidTraining(f"{cell}: {ours}") from error
        if (of_service := error_within(error, ReplayError)) is not None:
            raise InvalidTraining(f"{cell}: {of_service.detail}") from error
        raise
