"""What the command `replay-trainer study` says, without Ray."""

import io
from pathlib import Path

from rich.console import Console
from typer.testing import CliRunner

from replay_trainer.cli import app
from replay_trainer.study.cell import Task
from replay_trainer.study.cells import Study
from replay_trainer.study.command import StudyProgress
from replay_trainer.study.outcomes import Cost, Outcome, write_outcomes
from replay_trainer.study.settings import StudySettings
from tests.trainer.study.worlds import STUDY, write_study

NOWHERE = "http://127.0.0.1:1"


def test_a_mistake_ends_with_one_message(tmp_path: Path, tiny_model: Path) -> None:
    path = write_study(tmp_path, tiny_model, NOWHERE, STUDY.replace("seeds", "sedes"))
    result = CliRunner().invoke(app, ["study", str(path)])
    assert result.exit_code == 2
    assert "error: configuration" in result.output and "sedes: unknown key" in result.output
    assert "Traceback" not in result.output


def test_a_report_without_any_outcome_says_so(tmp_path: Path, tiny_model: Path) -> None:
    path = write_study(tmp_path, tiny_model, NOWHERE)
    result = CliRunner().invoke(app, ["study", str(path), "--report-only"])
    assert result.exit_code == 0, result.output
    assert "No recommendation: on no target and seed are all arms finished yet." in " ".join(result.output.split())


def test_an_arm_whose_training_broke_down_is_left_out_and_named(tmp_path: Path, tiny_model: Path) -> None:
    path = write_study(tmp_path, tiny_model, NOWHERE)
    study = Study.of(StudySettings.read(path))
    for cell in study.cells:
        failed = Outcome(cell.arm, cell.target, cell.seed, False, Cost(), failure="the gradient was not finite")
        write_outcomes(study.folder / "results" / f"{cell.name}.json", [failed])
    assert CliRunner().invoke(app, ["study", str(path), "--report-only"]).exit_code == 0
    text = (study.folder / "report.md").read_text()
    assert "Left out, since training broke down: 'none' (stories, seed 1): the gradient was not finite" in text


def test_progress_tells_the_time_left_within_80_columns(tmp_path: Path, tiny_model: Path) -> None:
    long = STUDY.replace('"uniform 25 %"', '"uniform rehearsal of a quarter of all rows, with plain cross-entropy"')
    study = Study.of(StudySettings.read(write_study(tmp_path, tiny_model, NOWHERE, long)))
    tasks = [Task(cell, study.folder, "float32", 8, 1) for cell in study.cells]
    times = iter(range(0, 6000, 600))
    for is_terminal in (False, True):
        shown = io.StringIO()
        console = Console(file=shown, width=80, force_terminal=is_terminal, color_system=None)
        with StudyProgress(console, tasks, lambda: float(next(times, 6000))) as progress:
            for task in tasks[:2]:
                progress.show(task)
        assert all(len(line) <= 80 for line in shown.getvalue().replace("\r", "\n").splitlines() if "\x1b" not in line)
        if not is_terminal:
            assert "study  1/6 cells, 50 min left  none, stories, seed 0" in shown.getvalue()
