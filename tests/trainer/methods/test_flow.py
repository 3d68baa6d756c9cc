import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from replay_trainer.errors import InvalidTraining
from replay_trainer.methods.flow import FlowWeights

LOSSES = arrays(np.float32, st.integers(1, 30), elements=st.floats(0.0625, 20, width=32))


@given(LOSSES)
def test_weights_are_the_formula_with_the_median_as_temperature(base_losses: np.ndarray) -> None:
    tau = statistics.median(base_losses.tolist())
    expected = [math.exp(-loss / tau) for loss in base_losses.tolist()]
    weights = FlowWeights.fit(base_losses).of(base_losses)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, expected, rtol=1e-6, atol=1e-30)


@given(LOSSES, st.floats(0.5, 50))
def test_an_easier_sample_never_weighs_less_and_none_weighs_more_than_one(base_losses: np.ndarray, tau: float) -> None:
    weights = FlowWeights.fit(base_losses, tau=tau).of(np.sort(base_losses))
    assert (np.diff(weights) <= 0).all()
    assert weights.max() <= 1


@given(LOSSES)
def test_normalized_weights_average_one_and_keep_their_ratios(base_losses: np.ndarray) -> None:
    plain = FlowWeights.fit(base_losses).of(base_losses)
    normalized = FlowWeights.fit(base_losses, normalize="mean").of(base_losses)
    np.testing.assert_allclose(normalized.mean(), 1, rtol=1e-5)
    np.testing.assert_allclose(normalized, plain / plain.mean(), rtol=1e-5, atol=1e-30)


def test_weights_keep_the_shape_of_what_they_are_asked_for() -> None:
    weights = FlowWeights.fit(np.array([1.0, 2.0, 3.0]), form="token")
    assert weights.of(np.ones((2, 3))).shape == (2, 3)
    assert weights.of(np.ones(0)).shape == (0,)


def paper_gradients(logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor, weight: torch.Tensor) -> list:
    """The gradient of the loss as the paper's formula reads, token by token, in float64."""
    logits = logits.detach().double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(logits)):
        for t in range(logits.shape[1]):
            if mask[i, t]:
                total = total - weight[i, t] * torch.log_softmax(logits[i, t], dim=0)[targets[i, t]]
    return torch.autograd.grad(total / mask.sum(), logits)[0].tolist()


@pytest.mark.parametrize("form", ["sequence", "token"])
@pytest.mark.parametrize("normalize", ["none", "mean"])
def test_the_gradient_of_a_batch_is_that_of_the_papers_formula(form: str, normalize: str) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 4, 5, requires_grad=True), torch.randint(0, 5, (3, 4))
    mask = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1]]).bool()
    base_nll = torch.rand(3, 4) * 3
    per_example = (base_nll * mask).sum(dim=1) / mask.sum(dim=1)
    base = per_example[:, None].expand(3, 4) if form == "sequence" else base_nll
    fitted_to = per_example if form == "sequence" else base_nll[mask]

    weights = FlowWeights.fit(fitted_to.numpy(), form=form, normalize=normalize)
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(3, 4) * mask
    loss = (torch.from_numpy(weights.of(base.numpy())) * nll).sum() / mask.sum()
    (gradient,) = torch.autograd.grad(loss, logits)

    tau = statistics.median(fitted_to.tolist())
    expected = torch.exp(-base.double() / tau)
    if normalize == "mean":
        expected = expected / torch.exp(-fitted_to.double() / tau).mean()
    np.testing.assert_allclose(gradient, paper_gradients(logits, targets, mask, expected), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_is_positive_and_finite(tau: float) -> None:
    with pytest.raises(InvalidTraining, match="tau must be a positive number of nats"):
        FlowWeights.fit(np.ones(3), tau=tau)


def test_a_median_of_zero_is_no_temperature() -> None:
    with pytest.raises(InvalidTraining, match="median base loss is 0"):
        FlowWeights.fit(np.array([0.0, 0.0, 5.0]))


def test_base_losses_that_are_not_finite_are_counted_and_the_first_is_named() -> None:
    base_losses = np.array([1.0, np.nan, 2.0, np.inf])
    with pytest.raises(InvalidTraining, match="2 of 4 base losses are not finite, the first is nan at place 1"):
        FlowWeights.fit(base_losses)
    with pytest.raises(InvalidTraining, match="the first is inf at place 0"):
        FlowWeights.fit(np.ones(2)).of(base_losses[3:])


def test_weights_that_vanish_cannot_be_normalized() -> None:
    with pytest.raises(InvalidTraining, match="every weight"):
        FlowWeights.fit(np.array([5.0, 6.0]), tau=1e-3, normalize="mean")


@pytest.mark.parametrize(
    ("base_losses", "settings", "message"),
    [
        (np.ones(0), {}, "no samples"),
        (np.ones((2, 2)), {}, "one flat array"),
        (np.ones(2), {"form": "batch"}, "form must be one of sequence, token, not 'batch'"),
        (np.ones(2), {"normalize": "sum"}, "normalize must be one of none, mean, not 'sum'"),
        (np.ones(2), {"tau": "mean"}, "tau must be one of median, not 'mean'"),
    ],
)
def test_what_cannot_be_fitted_is_refused(base_losses: np.ndarray, settings: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidTraining, match=message):
        FlowWeights.fit(base_losses, **settings)
