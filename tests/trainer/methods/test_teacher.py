"""The base model as the teacher: by a copy, by adapters that are off, and where there is no memory for it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from replay_trainer.errors import InvalidTraining
from replay_trainer.methods import teacher
from replay_trainer.methods.teacher import Teacher, frozen_copy
from tests.trainer.methods.ldifs_worlds import language_model
from tests.trainer.methods.test_ldifs_wrapped import PEFT_BEHIND, with_adapters

IDS = torch.arange(12).view(2, 6)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
        return found


@torch.no_grad()
def changed(model: nn.Module) -> None:
    for each in model.parameters():
        if each.requires_grad:
            each.add_(0.5)


@PEFT_BEHIND
@pytest.mark.parametrize("has_adapters", [False, True])
def test_it_says_what_the_model_said_before_training(has_adapters: bool) -> None:
    model = language_model()
    expected = logits_of(model.eval())
    model = with_adapters(model) if has_adapters else model
    spoken = Teacher.of(model)
    changed(model.train())
    modes = [module.training for module in model.modules()]
    with spoken.speaking() as base:
        found = base(input_ids=IDS).logits
    assert not found.requires_grad
    torch.testing.assert_close(found, expected)
    assert [module.training for module in model.modules()] == modes
    assert not torch.allclose(logits_of(model.eval()), expected)


def test_without_a_copy_or_adapters_there_is_no_teacher() -> None:
    with pytest.raises(InvalidTraining, match="no adapters to turn off"):
        Teacher(language_model(), base=None)


def test_a_copy_that_memory_does_not_hold_is_refused_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal: 100 kB\nMemAvailable: 10 kB\n")
    monkeypatch.setattr(teacher, "_MEMINFO", memory)
    with pytest.raises(InvalidTraining, match=r"takes .* GiB, and 0.00 GiB are free on cpu; train adapters"):
        frozen_copy(nn.Linear(100, 100))
    frozen_copy(nn.Linear(10, 10))
    monkeypatch.setattr(teacher, "_MEMINFO", tmp_path / "there is none")
    frozen_copy(nn.Linear(100, 100))


def test_weights_that_are_spread_over_processes_are_refused() -> None:
    model = nn.Linear(2, 2)
    model.weight.ds_id = 7  # type: ignore[assignment]
    with pytest.raises(InvalidTraining, match="spread over processes"):
        frozen_copy(model)
