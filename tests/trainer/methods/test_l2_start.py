from pathlib import Path

import torch

from replay_service.language.model import load_model
from replay_trainer.job.loop import fine_tune
from replay_trainer.methods.l2_start import StartPenalty
from tests.trainer.worlds import AloneWorker, a_job


def test_its_gradient_is_that_of_half_the_squared_distance_from_the_start() -> None:
    weight = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    start, penalty = weight.detach().clone(), StartPenalty([weight], 0.5)
    with torch.no_grad():
        weight += torch.tensor([0.1, 0.2, -0.3])
    weight.square().sum().backward()
    expected = weight.detach().clone().requires_grad_()
    (expected.square().sum() + 0.25 * (expected - start).square().sum()).backward()
    penalty.add_gradient()
    assert weight.grad is not None and expected.grad is not None
    torch.testing.assert_close(weight.grad, expected.grad)


def test_a_weight_without_a_gradient_gets_none() -> None:
    weight = torch.ones(2, requires_grad=True)
    StartPenalty([weight], 1.0).add_gradient()
    assert weight.grad is None


def test_a_job_with_the_penalty_ends_nearer_to_the_start(tmp_path: Path, tiny_model: Path) -> None:
    start = load_model(str(tiny_model)).state_dict()

    def moved(l2_start: float) -> float:
        job = a_job(tmp_path / str(l2_start), tiny_model, None, l2_start=l2_start)
        weights = fine_tune(job, "float32", AloneWorker()).bare_model.state_dict()
        return sum(float((weights[name] - start[name]).square().sum()) for name in start)

    assert moved(10.0) < 0.5 * moved(0.0)
