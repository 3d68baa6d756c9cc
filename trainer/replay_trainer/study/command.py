"""The commands `replay-trainer study` and `replay-trainer interpolate`, as a person watches them."""

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from rich.console import Console

from replay_service.language.model import faster_precision
from replay_service.progress import duration, progress_bar, seconds_left
from replay_trainer.config import DataConfig
from replay_trainer.errors import InvalidTraining
from replay_trainer.study.cell import Task
from replay_trainer.study.cells import Study
from replay_trainer.study.checks import check_folder, check_study
from replay_trainer.study.interpolation import Interpolated, Interpolation, best_within
from replay_trainer.study.outcomes import read_outcomes
from replay_trainer.study.report import as_table, write_report
from replay_trainer.study.settings import StudySettings


def carry_out(
    settings: StudySettings,
    console: Console,
    start_ray: Callable[[], None],
    arms: Collection[str] = (),
    seeds: Collection[int] = (),
) -> None:
    """Check a study, and train the cells that are not finished, with a line of progress.

    Args:
        arms: names of those to train now; all, where there are none.
        seeds: those to train now; likewise.

    Raises:
        TrainerError: what `check_study` finds, before Ray starts; or what a cell raised.
    """
    study = Study.of(settings)
    cells = study.chosen(arms, seeds)
    precision = check_study(study)
    start_ray()
    from replay_trainer.study.engine import Engine

    engine = Engine(study, precision, cells)
    with StudyProgress(console, engine.tasks(), time.monotonic) as progress:
        engine.run(progress.show)


def report(settings: StudySettings, console: Console) -> None:
    """Write the report of what is finished, and say where it is and what it recommends."""
    study = Study.of(settings)
    check_folder(study)
    outcomes = read_outcomes(study.folder / "results" / f"{each.name}.json" for each in study.cells)
    written = write_report(study, outcomes)
    console.print(f"report in {study.folder / 'report.md'}, figures in results.parquet", soft_wrap=True, markup=False)
    if not written.pictures:
        console.print("no pictures; they need matplotlib: pip install 'replay-service[study]'", markup=False)
    console.print(f"\n{written.recommendation}", markup=False, highlight=False)


class StudyProgress:
    """Cells, the latest one and the time left: one line that changes, or elsewhere a line a cell."""

    def __init__(self, console: Console, tasks: list[Task], clock: Callable[[], float]) -> None:
        self._console, self._clock, self._began = console, clock, clock()
        self._num_cells = len(tasks)
        self._first = self._done = sum(each.result.exists() for each in tasks)
        self._bar = progress_bar(console, bar_width=8) if console.is_terminal else None
        self._bar_task = None
        if self._bar is not None:
            self._bar_task = self._bar.add_task(
                "study", total=self._num_cells, completed=self._done, note=self._counts()
            )

    def show(self, task: Task) -> None:
        """After a cell."""
        self._done += 1
        cell = task.cell
        note = f"{self._counts()}  {cell.arm}, {cell.target}, seed {cell.seed}"
        if self._bar is not None and self._bar_task is not None:
            self._bar.update(self._bar_task, completed=self._done, note=note[: max(20, self._console.width - 34)])
        else:
            self._console.print(f"study  {note}"[: self._console.width], markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> "StudyProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _counts(self) -> str:
        new, whole = self._done - self._first, self._num_cells - self._first
        left_s = seconds_left(self._clock() - self._began, new / whole, 1 - new / whole) if whole else None
        left = "" if left_s is None else f", {duration(left_s)} left"
        return f"{self._done:,}/{self._num_cells:,} cells{left}"


def score_shares(
    base: str,
    tuned: str,
    data: dict[str, Any],
    shares: list[float],
    budget_nats: float | None,
    output: Path | None,
    heldout_rows: int,
    console: Console,
) -> None:
    """Score interpolated weights, show a table, and write the best ones.

    Raises:
        InvalidTraining: when a model or a text cannot be used, or no share is within the budget.
    """
    if output is not None and output.exists() and any(output.iterdir()):
        raise InvalidTraining(f"{output} holds files already; name a folder that is empty or not there")
    interpolation = Interpolation(base, tuned, faster_precision())
    found = []
    with progress_bar(console) as bar:
        task = bar.add_task("interpolate", total=len(shares), note="loading the models")
        for each in interpolation.scored(DataConfig.model_validate(data), shares, heldout_rows):
            found.append(each)
            bar.update(task, completed=len(found), note=f"lambda {each.tuned_share:g}")
    console.print(as_table(("lambda", "target loss", "forgetting", "worst domain"), map(_cells, found)), markup=False)
    if budget_nats is None:
        return
    best = best_within(found, budget_nats)
    if best is None:
        raise InvalidTraining(
            f"every share forgets more than {budget_nats:g} nats per token; try a smaller --lambda, or allow more"
        )
    console.print(f"best within {budget_nats:g} nats per token: lambda {best.tuned_share:g}", highlight=False)
    if output is not None:
        interpolation.save(best.tuned_share, output)
        console.print(f"weights in {output}", soft_wrap=True, markup=False)


def _cells(found: Interpolated) -> tuple[str, str, str, str]:
    loss = "-" if found.target_loss is None else f"{found.target_loss:.3f}"
    worst = max(found.forgetting, key=lambda domain: found.forgetting[domain])
    return (
        f"{found.tuned_share:g}",
        loss,
        f"{found.mean_forgetting:+.3f}",
        f"{worst} {found.forgetting[worst]:+.3f}",
    )
