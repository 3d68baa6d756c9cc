"""Training when a loss is not finite."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from replay_service.language.model import load_model
from replay_trainer.errors import NotFinite
from replay_trainer.job import loop
from replay_trainer.job.loop import MOST_SKIPPED, fine_tune
from replay_trainer.job.metrics import MetricsFile
from tests.trainer.worlds import AloneWorker, a_job, train_together


def breaking_down(monkeypatch: pytest.MonkeyPatch, breaks: Callable[[int], bool], value: float = float("inf")) -> None:
    """Models whose last row comes out as `value` in the training's forward passes that `breaks` names."""

    def load(name: str) -> Any:
        model, num_passes = load_model(name), 0

        def hook(module: Any, _inputs: Any, hidden_BTD: Tensor) -> Tensor:
            nonlocal num_passes
            if not module.training:  # the model is tried before it is trained
                return hidden_BTD
            num_passes += 1
            return torch.cat([hidden_BTD[:-1], hidden_BTD[-1:] * value]) if breaks(num_passes - 1) else hidden_BTD

        model.model.norm.register_forward_hook(hook)
        return model

    monkeypatch.setattr(loop, "load_model", load)


def steps_of(output: Path) -> list[dict[str, Any]]:
    return [line for line in MetricsFile(output / "metrics.jsonl").lines() if line["kind"] == "step"]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_step_with_a_row_that_is_not_finite_leaves_the_weights_and_the_job_goes_on(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    breaking_down(monkeypatch, lambda step: step in (0, 4), value)
    job = a_job(tmp_path, tiny_model, None, num_steps=8, save_model=True)
    fine_tune(job, "float32", AloneWorker())
    steps = steps_of(tmp_path)
    assert [step["was_skipped"] for step in steps] == [step in (0, 4) for step in range(8)]
    assert [step["num_nonfinite_rows"] for step in steps] == [int(step in (0, 4)) for step in range(8)]
    tuned = load_model(str(tmp_path / "model"))
    assert all(each.isfinite().all() for each in tuned.parameters())
    before = load_model(job.model)
    assert not torch.equal(tuned.lm_head.weight, before.lm_head.weight)


def test_a_skipped_step_changes_nothing(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking_down(monkeypatch, lambda step: True)
    job = a_job(tmp_path, tiny_model, None, num_steps=3, save_model=True)
    fine_tune(job, "float32", AloneWorker())
    before = dict(load_model(job.model).named_parameters())
    for name, each in load_model(str(tmp_path / "model")).named_parameters():
        assert torch.equal(each, before[name])


def test_all_ranks_skip_a_step_together(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking_down(monkeypatch, lambda step: step == 1)
    job = a_job(tmp_path, tiny_model, None, num_steps=4)
    train_together(job, "float32", 2)
    assert [step["was_skipped"] for step in steps_of(tmp_path)] == [False, True, False, False]


def test_training_that_has_broken_down_ends(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking_down(monkeypatch, lambda step: step >= 2)
    job = a_job(tmp_path, tiny_model, None, num_steps=40)
    with pytest.raises(NotFinite, match="20 steps in a row, which were skipped; go on from a checkpoint"):
        fine_tune(job, "float32", AloneWorker())
    assert len(steps_of(tmp_path)) == MOST_SKIPPED + 1
