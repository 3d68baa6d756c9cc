"""The studies of this folder, as they are written."""

from fractions import Fraction
from pathlib import Path

import pytest

from replay_service.sampling.injection import exact_ratio
from replay_service.sampling.run_config import RunConfig
from replay_trainer.study.cells import Study
from replay_trainer.study.settings import StudySettings

FOLDER = Path(__file__).parent


def study_of(name: str) -> Study:
    return Study.of(StudySettings.read(FOLDER / name))


def test_both_studies_train_the_same_but_for_their_arms() -> None:
    first, more = study_of("study.toml"), study_of("recipe.toml")
    none, own = first.cells[0].job, more.cells[0].job
    assert own.model_copy(update={"rehearsal": None, "output": none.output}) == none
    assert first.targets == more.targets and not set(first.arms) & set(more.arms)
    assert set(more.settings.seeds) <= set(first.settings.seeds)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.toml")), ids=lambda file: file.stem)
def test_all_studies_can_be_carried_out_and_name_how(file: Path) -> None:
    assert study_of(file.name).cells
    assert f"replay-trainer study {file.name}" in file.read_text()


def test_arms_of_a_schedule_rehearse_as_many_rows_as_at_a_constant_ratio() -> None:
    jobs = {cell.arm: cell.job for cell in study_of("variants.toml").cells}
    scheduled = {arm: job for arm, job in jobs.items() if job.run_settings()["schedule"]["curve"] != "constant"}
    assert len(scheduled) == 4
    for arm, job in scheduled.items():
        config = RunConfig.from_dict(job.run_settings())
        ratios = [config.schedule.at(step, exact_ratio(config.ratio)) for step in range(job.num_steps)]
        rows = sum(ratios, Fraction(0)) * job.global_batch_size
        assert 320 - 1 < rows <= 320, arm
