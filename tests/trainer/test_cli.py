"""What the command line shows of a job while it trains."""

import io
from pathlib import Path

from rich.console import Console

from replay_trainer.cli import _Watched
from replay_trainer.job.metrics import MetricsFile
from replay_trainer.job.progress import ProgressLine
from tests.trainer.worlds import a_job


def test_lines_of_an_earlier_job_in_the_folder_are_not_shown(tmp_path: Path, tiny_model: Path) -> None:
    metrics, shown = MetricsFile(tmp_path / "metrics.jsonl"), io.StringIO()
    for step in range(3):
        metrics.append("step", step, target_loss=9.0, step_s=1.0)
    with ProgressLine(Console(file=shown, width=200), "train", 3, lambda: 0.0) as line:
        watched = _Watched(a_job(tmp_path, tiny_model, None, num_steps=3), line)
        watched.show_new()
        assert not shown.getvalue()
        metrics.begin(1)
        watched.show_new()
        for step in (1, 2):
            metrics.append("step", step, target_loss=1.0, step_s=2.0)
            watched.show_new()
    assert [each.split("  ")[1:3] for each in shown.getvalue().splitlines()] == [
        ["step 2/3", "target 1.000"],
        ["step 3/3", "target 1.000"],
    ]
