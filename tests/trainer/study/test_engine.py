"""A tiny study through the real service, the real loop and Ray."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from replay_service.stopping import Stopped
from replay_trainer.client import ReplayClient
from replay_trainer.study.cell import Task
from replay_trainer.study.cells import Study
from replay_trainer.study.checks import check_study
from replay_trainer.study.command import StudyProgress, report
from replay_trainer.study.engine import Engine
from replay_trainer.study.outcomes import read_outcomes
from replay_trainer.study.settings import StudySettings
from tests.trainer.study.worlds import write_study


def files_of(study: Study) -> dict[str, tuple[int, str]]:
    """When each result was written, and what it says of what was measured."""
    paths = sorted((study.folder / "results").glob("*.json"))
    return {path.name: (path.stat().st_mtime_ns, path.read_text()) for path in paths}


@pytest.mark.usefixtures("ray_session")
def test_a_study_that_is_interrupted_goes_on_and_repeats_no_finished_cell(
    tmp_path: Path, tiny_model: Path, service_url: str
) -> None:
    settings = StudySettings.read(write_study(tmp_path, tiny_model, service_url))
    study = Study.of(settings)
    engine = Engine(study, check_study(study), study.cells)
    seen: list[Task] = []

    def stop_after_two(task: Task) -> None:
        seen.append(task)
        if len(seen) == 2:
            raise Stopped(2)

    with pytest.raises(Stopped):
        engine.run(stop_after_two)
    before = files_of(study)
    assert 2 <= len(before) < len(study.cells) == 6
    shown = io.StringIO()
    with StudyProgress(Console(file=shown, width=80), engine.tasks(), lambda: 0.0) as progress:
        engine.run(progress.show)
    after = files_of(study)
    assert len(after) == 6 and {name: after[name] for name in before} == before
    lines = shown.getvalue().splitlines()
    assert len(lines) == 6 - len(before) and lines[-1].startswith("study  6/6 cells")
    assert max(map(len, lines)) <= 80
    engine.run(seen.append)
    assert files_of(study) == after
    check_what_was_measured(study, service_url)
    check_the_report(settings, study)


def check_what_was_measured(study: Study, service_url: str) -> None:
    outcomes = {(each.arm, each.seed): each for each in read_outcomes((study.folder / "results").glob("*.json"))}
    assert len(outcomes) == 8
    for seed in (0, 1):
        none, half = outcomes["none", seed], outcomes["half of the way", seed]
        assert none.domains == ("law", "news", "web")
        assert (none.cost.num_rehearsed_rows, none.estimate) == (0, None)
        assert none.target_text is not None and none.target_loss() < none.target_text.base_nats[0][0]
        assert half.target_loss() > none.target_loss(), "weights half of the way have learned less"
        assert outcomes["uniform 25 %", seed].cost.num_rehearsed_rows == 4
        for arm in ("none", "uniform 25 %", "KL, weight 3"):
            cost = outcomes[arm, seed].cost
            assert cost.num_rows == 16 and cost.flops > 0 and cost.training_s > 0 and cost.num_parameters > 0
        weights = {arm: each.uniform_weight for (arm, _), each in outcomes.items()}
        assert weights == {"none": 1.0, "uniform 25 %": 1.0, "KL, weight 3": None, "half of the way": None}
        assert none.learning_rate == 1e-2
    frontier = {arm for (arm, _), each in outcomes.items() if each.is_uniform_cross_entropy}
    assert frontier == {"none", "uniform 25 %"}
    with ReplayClient(service_url) as client:
        for cell in study.cells:
            if cell.job.rehearsal is not None:
                stats = client.stats(cell.job.rehearsal.run)
                found = outcomes[cell.arm, cell.seed]
                assert stats["num_reported"] == found.cost.num_rehearsed_rows
                assert found.estimate is not None and found.estimate["nats"] == stats["forgetting"]["nats"]


def check_the_report(settings: StudySettings, study: Study) -> None:
    shown = io.StringIO()
    report(settings, Console(file=shown, width=80))
    text = (study.folder / "report.md").read_text()
    assert all(f"| {arm} |" in text for arm in study.arms)
    assert "## Recommendation" in text and "report in" in shown.getvalue()
    for name in ("frontier", "domains", "flips"):
        assert (study.folder / f"{name}.png").stat().st_size > 5_000
    table = pq.read_table(study.folder / "results.parquet")
    assert len(table) == 8 * (3 + 1) * 2
    known = json.loads((study.folder / "study.json").read_text())
    assert known["cells"] == {cell.title: cell.name for cell in study.cells}
    assert known["jobs"].keys() == set(known["cells"].values())
