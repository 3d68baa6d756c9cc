"""One cell, in this process."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from replay_trainer.client import ReplayClient
from replay_trainer.config import LoraConfig
from replay_trainer.job.loop import fine_tune
from replay_trainer.job.metrics import MetricsFile
from replay_trainer.study.cell import LoneWorker, Task, run_cell, score_base, uniform_weight
from replay_trainer.study.cells import Study
from replay_trainer.study.outcomes import Outcome, read_outcomes
from replay_trainer.study.settings import StudySettings
from tests.trainer.study.worlds import write_study


class Killed(LoneWorker):
    """Is killed right after its first checkpoint."""

    def save(self, state: dict[str, Any], step: int) -> None:
        LoneWorker.save(self, state, step)
        raise KeyboardInterrupt


def task_of(folder: Path, model: Path, url: str, arm: str, **changes: Any) -> Task:
    folder.mkdir()
    study = Study.of(StudySettings.read(write_study(folder, model, url)))
    cell = next(each for each in study.cells if each.arm == arm)
    cell = replace(cell, job=cell.job.model_copy(update=changes))
    return Task(cell, study.folder, "float32", 100, 1)


def outcomes_of(task: Task) -> list[Outcome]:
    score_base(task)
    run_cell(task)
    return read_outcomes([task.result])


@pytest.mark.parametrize("arm", ["none", "KL, weight 3"])
def test_a_cell_that_was_killed_goes_on_from_its_checkpoint_to_the_same_outcome(
    tmp_path: Path, tiny_model: Path, service_url: str, arm: str
) -> None:
    whole = outcomes_of(task_of(tmp_path / "whole", tiny_model, service_url, arm))
    task = task_of(tmp_path / "killed", tiny_model, service_url, arm, checkpoint_every=2)
    job = task.cell.job
    if job.rehearsal is not None:
        with ReplayClient(service_url) as client:
            client.ensure_run(job.rehearsal.run, job.rehearsal.corpus, job.run_settings())
    job.output.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(job, "float32", Killed(job.output, torch.device("cpu")))
    assert (job.output / "checkpoint.pt").exists()
    again = outcomes_of(task)
    assert [line["step"] for line in MetricsFile(job.output / "metrics.jsonl").lines()] == [0, 1, 2, 3]
    for one, other in zip(whole, again, strict=True):
        assert (one.arm, one.pretraining, one.target_text) == (other.arm, other.pretraining, other.target_text)
        assert one.cost.num_rehearsed_rows == other.cost.num_rehearsed_rows
    assert not (job.output / "checkpoint.pt").exists()


def test_uniform_rehearsal_with_adapters_is_on_the_frontier_and_in_no_law(
    tmp_path: Path, tiny_model: Path, service_url: str
) -> None:
    (found,) = outcomes_of(task_of(tmp_path / "lora", tiny_model, service_url, "uniform 25 %", lora=LoraConfig(r=2)))
    assert (found.is_uniform_cross_entropy, found.lora_rank, found.uniform_weight) == (True, 2, None)


def test_training_that_breaks_down_is_an_outcome_of_all_its_arms(
    tmp_path: Path, tiny_model: Path, service_url: str
) -> None:
    task = task_of(tmp_path / "broken", tiny_model, service_url, "none", learning_rate=1e30, num_steps=40)
    found = outcomes_of(task)
    assert [each.arm for each in found] == ["none", "half of the way"]
    assert all(each.failure is not None and "not finite in 20 steps" in each.failure for each in found)


@pytest.mark.parametrize(
    ("keys", "weight"),
    [
        ({}, 1.0),
        ({"rehearsal_weight": 3.0}, 3.0),
        ({"rehearsal_loss": "distill", "rehearsal_weight": 3.0}, None),
        ({"policy": "mix_cd"}, None),
        ({"injection_ratio": "auto"}, None),
        ({"schedule": {"curve": "linear", "num_steps": 4, "final_ratio": "0.5"}}, None),
    ],
)
def test_uniform_rehearsal_with_cross_entropy_has_a_weight(
    tmp_path: Path, tiny_model: Path, keys: dict[str, Any], weight: float | None
) -> None:
    study = Study.of(StudySettings.read(write_study(tmp_path, tiny_model, "http://127.0.0.1:1")))
    job = next(each.job for each in study.cells if each.arm == "uniform 25 %")
    content = job.model_dump(mode="json", exclude_unset=True)
    content["rehearsal"] |= keys
    assert uniform_weight(type(job).model_validate(content)) == weight
    assert uniform_weight(job.model_copy(update={"l2_start": 0.1})) is None


def test_every_model_of_a_cell_is_asked_the_questions_of_the_study(
    tmp_path: Path, tiny_model: Path, service_url: str
) -> None:
    task = task_of(tmp_path / "asked", tiny_model, service_url, "none")
    questions = [{"prompt": "the dog", "choices": [" saw", " of"], "answer": 0}] * 2
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in questions))
    found = outcomes_of(replace(task, choices=path))
    assert [each.arm for each in found] == ["none", "half of the way"]
    for each in found:
        assert each.answers is not None and each.answers.num_questions == (2,)
        # Alike questions have alike answers.
        assert {*each.answers.num_base_right, *each.answers.num_flips, *each.answers.num_gains} <= {0, 2}
