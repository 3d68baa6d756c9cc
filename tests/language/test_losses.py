import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from replay_service.language.losses import position_losses, token_losses


def random_batch(seed: int, lengths: list[int], width: int = 9, vocab_size: int = 13) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3.0 * torch.randn(len(lengths), width, vocab_size, generator=generator)
    input_ids = torch.randint(0, vocab_size, (len(lengths), width), generator=generator)
    return logits, input_ids, torch.tensor(lengths)


def losses_one_by_one(logits: Tensor, input_ids: Tensor, lengths: Tensor) -> Tensor:
    nll = torch.zeros(len(lengths), input_ids.shape[1] - 1)
    for row, length in enumerate(lengths.tolist()):
        for position in range(1, length):
            nll[row, position - 1] = cross_entropy(logits[row, position - 1], input_ids[row, position])
    return nll


lengths = st.lists(st.integers(2, 9), min_size=1, max_size=5)


@given(st.integers(0, 10**6), lengths)
@settings(max_examples=30, deadline=None)
def test_losses_are_the_cross_entropy_of_each_prediction(seed: int, lengths: list[int]) -> None:
    batch = random_batch(seed, lengths)
    losses = token_losses(*batch)
    expected = losses_one_by_one(*batch)
    torch.testing.assert_close(losses.nll_BS, expected, atol=1e-5, rtol=0)
    mean = expected.sum(dim=1) / (batch[2] - 1)
    torch.testing.assert_close(losses.mean_nats(), mean, atol=1e-5, rtol=0)


@given(st.integers(0, 10**6), lengths)
@settings(max_examples=30, deadline=None)
def test_hits_are_where_the_argmax_is_the_token_that_came(seed: int, lengths: list[int]) -> None:
    logits, input_ids, length = random_batch(seed, lengths, vocab_size=3)
    losses = token_losses(logits, input_ids, length)
    hits = logits[:, :-1].argmax(dim=2) == input_ids[:, 1:]
    assert torch.equal(losses.correct_BS, hits & losses.mask_BS)
    assert losses.correct_BS.dtype == losses.mask_BS.dtype == torch.bool


def test_what_lies_beyond_a_rows_length_counts_for_nothing() -> None:
    logits, input_ids, length = random_batch(0, [2, 5, 9])
    losses = token_losses(logits, input_ids, length)
    assert losses.mask_BS.sum(dim=1).tolist() == [1, 4, 8]
    logits[0, 1:], logits[1, 4:] = 50.0, -50.0
    input_ids[0, 2:], input_ids[1, 5:] = 0, 1
    for before, after in zip(losses[:3], token_losses(logits, input_ids, length)[:3], strict=True):
        assert torch.equal(before, after)
    assert not losses.nll_BS[~losses.mask_BS].any()
    assert not losses.correct_BS[~losses.mask_BS].any()


def test_gradients_are_those_of_cross_entropy() -> None:
    logits, input_ids, length = random_batch(1, [3, 9, 2, 6])
    ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    token_losses(ours, input_ids, length).mean_nats().sum().backward()
    (losses_one_by_one(plain, input_ids, length).sum(dim=1) / (length - 1)).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad, atol=1e-5, rtol=0)
    assert not ours.grad[0, 2:].any()


def test_gradients_are_exact_however_differently_losses_weigh() -> None:
    logits, input_ids, length = random_batch(4, [3, 9, 2, 6, 0])
    weights = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(
        lambda logits: token_losses(logits, input_ids, length).nll_BS * weights, logits.double().requires_grad_()
    )


@pytest.mark.parametrize("vocab_size", [13, 300_000])
def test_a_gradient_is_of_the_logits_type_and_rounded_once(vocab_size: int) -> None:
    logits, input_ids, length = random_batch(5, [9, 4], vocab_size=vocab_size)
    narrow, plain = (
        logits.to(dtype).to(again) for dtype, again in [(torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)]
    )
    for each in (narrow, plain):
        token_losses(each.requires_grad_(), input_ids, length).nll_BS.square().sum().backward()
    assert narrow.grad.dtype == torch.bfloat16
    assert torch.equal(narrow.grad, plain.grad.bfloat16())


def test_only_the_logits_as_they_came_are_kept_for_the_backward_pass() -> None:
    logits, input_ids, length = random_batch(6, [9, 4], vocab_size=1000)
    logits = logits.bfloat16().requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda kept: kept):
        token_losses(logits, input_ids, length)
    large = [each for each in kept if each.numel() >= 1000]
    assert [each.data_ptr() for each in large] == [logits.data_ptr()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    logits, input_ids, length = random_batch(2, [9, 4], vocab_size=4000)
    losses = token_losses(logits.to(dtype), input_ids, length)
    assert losses.nll_BS.dtype == torch.float32
    expected = losses_one_by_one(logits.to(dtype).float(), input_ids, length)
    torch.testing.assert_close(losses.nll_BS, expected, atol=1e-4, rtol=0)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_arithmetic_that_overwrites_the_logits_gives_the_very_same(seed: int) -> None:
    logits, input_ids, _ = random_batch(seed, [9], vocab_size=1000)
    kept = position_losses(logits[0, :-1], input_ids[0, 1:])
    overwritten = position_losses(logits[0, :-1].clone(), input_ids[0, 1:], overwrite=True)
    assert all(torch.equal(a, b) for a, b in zip(kept, overwritten, strict=True))
    torch.testing.assert_close(kept.log_total_P, logits[0, :-1].logsumexp(dim=1))


def test_huge_logits_overflow_nothing() -> None:
    logits, input_ids, length = random_batch(3, [9])
    assert torch.isfinite(token_losses(1e30 * logits, input_ids, length).nll_BS).all()


def test_equally_likely_tokens_all_count_as_hits() -> None:
    losses = token_losses(torch.zeros(1, 3, 5), torch.tensor([[0, 1, 4]]), torch.tensor([3]))
    assert losses.correct_BS.all()
    assert losses.nll_BS.tolist() == [pytest.approx([np.log(5)] * 2)]
