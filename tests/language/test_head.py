from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Linear
from torch.utils._python_dispatch import TorchDispatchMode

from replay_service.language import head as tiles
from replay_service.language.head import CHUNK, chunked_logits, head_losses
from replay_service.language.losses import TokenLosses, token_losses

WIDTH, HIDDEN, VOCAB = 9, 6, 150


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a vocabulary has several, the last of them shorter."""
    monkeypatch.setattr(tiles, "_SLICE_ON_A_CPU", 64)


class Case:
    """Hidden states, a head and rows of tokens; beyond the rows' lengths lies anything."""

    def __init__(self, seed: int, lengths: list[int], *, bias: bool = True, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (len(lengths), WIDTH)
        self.hidden = torch.randn(*shape, HIDDEN, generator=generator, dtype=dtype).requires_grad_()
        self.head = Linear(HIDDEN, VOCAB, bias=bias, dtype=dtype)
        for parameter in self.head.parameters():
            parameter.data.normal_(generator=generator)
        self.rows = torch.randint(0, VOCAB, shape, generator=generator), torch.tensor(lengths)
        self.weights = torch.randn(len(lengths), WIDTH - 1, generator=generator, dtype=dtype)

    @property
    def inputs(self) -> list[Tensor]:
        return [self.hidden, *self.head.parameters()]

    def apart(self, chunk: int = CHUNK) -> TokenLosses:
        return head_losses(self.hidden, self.head, *self.rows, chunk=chunk)

    def whole(self) -> TokenLosses:
        return token_losses(self.head(self.hidden), *self.rows)

    def gradients(self, losses: TokenLosses) -> tuple[Tensor, ...]:
        return torch.autograd.grad((losses.nll_BS * self.weights).sum(), self.inputs)


lengths = st.lists(st.integers(0, WIDTH), min_size=1, max_size=5)
chunks = st.integers(1, 50)


@given(st.integers(0, 10**6), lengths, chunks, st.booleans())
@settings(max_examples=40, deadline=None)
def test_losses_hits_and_gradients_are_those_of_the_whole_logits(
    seed: int, lengths: list[int], chunk: int, bias: bool
) -> None:
    case = Case(seed, lengths, bias=bias)
    apart, whole = case.apart(chunk), case.whole()
    torch.testing.assert_close(apart.nll_BS, whole.nll_BS, atol=1e-5, rtol=1e-5)
    assert torch.equal(apart.correct_BS, whole.correct_BS)
    assert torch.equal(apart.mask_BS, whole.mask_BS)
    for ours, plain in zip(case.gradients(apart), case.gradients(whole), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


def test_gradients_are_exact_however_differently_losses_weigh() -> None:
    case = Case(0, [3, 0, 5], dtype=torch.float64)

    def weighed(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        head = Linear(HIDDEN, VOCAB)
        del head.weight, head.bias
        head.weight, head.bias = weight, bias
        return head_losses(hidden, head, *case.rows, chunk=4).nll_BS * case.weights

    assert torch.autograd.gradcheck(weighed, tuple(case.inputs), fast_mode=True)


def test_under_autocast_products_are_narrow_and_gradients_of_their_tensors_types() -> None:
    case = Case(1, [9, 5, 9])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        apart, whole = case.apart(chunk=7), case.whole()
    assert apart.nll_BS.dtype == torch.float32
    torch.testing.assert_close(apart.nll_BS, whole.nll_BS, atol=1e-4, rtol=1e-4)
    for ours, plain in zip(case.gradients(apart), case.gradients(whole), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, plain, atol=0.05, rtol=0.02)


def test_rows_without_predictions_give_gradients_of_zero_and_not_none() -> None:
    case = Case(2, [0, 1])
    losses = case.apart()
    assert not losses.nll_BS.any()
    assert all(not gradient.any() for gradient in case.gradients(losses))


def test_a_frozen_head_gets_no_gradient_and_passes_it_on() -> None:
    case = Case(3, [9, 9])
    case.head.requires_grad_(False)
    case.apart().nll_BS.sum().backward()
    ours = case.hidden.grad
    assert ours is not None
    assert case.head.weight.grad is None
    torch.testing.assert_close(ours, torch.autograd.grad(case.whole().nll_BS.sum(), case.hidden)[0])


def test_what_lies_beyond_a_rows_length_is_not_even_looked_at() -> None:
    case = Case(4, [3, 9])
    before = case.apart()
    case.hidden.data[0, 2:] = torch.nan
    for ours, expected in zip(case.apart()[:3], before[:3], strict=True):
        assert torch.equal(ours, expected)
    assert all(torch.isfinite(gradient).all() for gradient in case.gradients(case.apart()))


class Largest(TorchDispatchMode):
    """Remembers how many elements the largest tensor had that any operation gave."""

    num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = result if isinstance(result, (tuple, list)) else [result]
        sizes = [each.numel() for each in given if isinstance(each, Tensor)]
        self.num_elements = max(self.num_elements, *sizes, 0)
        return result


def test_neither_all_logits_nor_their_gradient_ever_exist() -> None:
    case = Case(5, [WIDTH] * 30)
    with Largest() as largest:
        case.gradients(case.apart(chunk=16))
    assert largest.num_elements < 30 * WIDTH * HIDDEN + 1 < 30 * (WIDTH - 1) * VOCAB


@pytest.mark.parametrize("bias", [True, False])
def test_whole_logits_come_in_chunks_that_fit_the_memory(bias: bool) -> None:
    case = Case(6, [WIDTH], bias=bias)
    with torch.no_grad():
        memory = torch.empty(4 * VOCAB + 5)
        chunks = [each.clone() for each in chunked_logits(case.hidden[0], case.head, memory)]
        assert [len(each) for each in chunks] == [4, 4, 1]
        torch.testing.assert_close(torch.cat(chunks), case.head(case.hidden[0]))
