import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from replay_service.classification.losses import IGNORED, class_divergences, class_losses


@given(st.integers(1, 9), st.integers(2, 5), st.integers(0, 99), st.sampled_from([torch.float32, torch.bfloat16]))
def test_losses_are_cross_entropies_in_float32_and_hits_are_argmaxima(
    num: int, num_classes: int, seed: int, dtype: torch.dtype
) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(num, num_classes, generator=rng).to(dtype)
    label = torch.randint(0, num_classes, (num,), generator=rng)
    losses = class_losses(logits, label)
    expected = -logits.double().log_softmax(dim=1).gather(1, label[:, None]).squeeze(1)
    assert losses.nll_B.dtype == torch.float32
    torch.testing.assert_close(losses.nll_B.double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(losses.correct_B, logits.gather(1, label[:, None]).squeeze(1) == logits.amax(dim=1))
    assert losses.mask_B.all()


def test_a_label_that_does_not_count_has_no_loss_no_hit_and_no_gradient() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    losses = class_losses(logits, torch.tensor([1, IGNORED, 2]))
    losses.nll_B.sum().backward()
    assert losses.nll_B[1] == 0 and not losses.correct_B[1] and losses.mask_B.tolist() == [True, False, True]
    assert logits.grad is not None and not logits.grad[1].any() and logits.grad[[0, 2]].any(dim=1).all()


def test_a_tie_is_right_as_for_tokens() -> None:
    assert class_losses(torch.zeros(2, 3), torch.tensor([0, 2])).correct_B.all()


def test_a_logit_that_is_no_number_is_no_hit() -> None:
    losses = class_losses(torch.tensor([[float("nan"), 0.0]]), torch.tensor([0]))
    assert not losses.correct_B.any() and losses.nll_B.isnan().all()


def test_a_label_beyond_the_classes_is_an_error() -> None:
    with pytest.raises((IndexError, RuntimeError)):
        class_losses(torch.zeros(1, 3), torch.tensor([3]))


def test_the_divergence_is_zero_at_the_base_model_and_counts_what_new_classes_take_away() -> None:
    base = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert class_divergences(base, base).abs().max() < 1e-6
    with_new = torch.cat([base, torch.full((5, 1), 1.5)], dim=1)
    taken = with_new.softmax(dim=1)[:, 3]
    torch.testing.assert_close(class_divergences(with_new, base), -(1 - taken).log().float())
    assert class_divergences(torch.full((1, 3), 0.0), torch.tensor([[0.0, -1e30, 0.0]])).item() == pytest.approx(
        math.log(1.5)
    )
