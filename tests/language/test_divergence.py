"""The divergence from a base model over the whole vocabulary, from logits and from hidden states."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Linear
from torch.nn.parallel import DistributedDataParallel

from replay_service.language import divergence
from replay_service.language.divergence import Head, divergences, head_divergences
from replay_service.language.losses import token_losses
from replay_service.language.model_parts import BaseStates, LanguageLosses, with_divergence
from tests.language.test_model_parts import APART, WHOLE, make_model, some_rows

SEEDS = st.integers(0, 2**31)


def exact(logits_PV: Tensor, base_PV: Tensor) -> Tensor:
    """The definition, float64."""
    log_q, log_p = (each.double().log_softmax(dim=1) for each in (logits_PV, base_PV))
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(SEEDS, st.integers(0, 9), st.floats(0.1, 30))
def test_it_and_its_gradient_are_those_of_the_definition(seed: int, num: int, spread: float) -> None:
    logits, base = (spread * numbers(seed + i, num, 7) for i in range(2))
    logits.requires_grad_()
    weight = numbers(seed + 2, num)
    ours, expected = divergences(logits, base), exact(logits, base)
    torch.testing.assert_close(ours.double(), expected, atol=1e-5 * spread, rtol=1e-4)
    (found,) = torch.autograd.grad((ours * weight).sum(), logits)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), logits)
    torch.testing.assert_close(found, wanted.float(), atol=1e-6, rtol=1e-4)


def test_it_is_zero_for_equal_predictions_and_finite_where_the_base_model_rules_tokens_out() -> None:
    base = numbers(0, 3, 5)
    base[:, 0] = -torch.inf
    logits = base.clone()
    assert divergences(logits, base).tolist() == [0.0, 0.0, 0.0]
    assert divergences(numbers(1, 3, 5), base).isfinite().all()


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_at_once", [1, 3, 100])
def test_hidden_states_give_what_their_logits_give(
    has_bias: bool, num_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence, "_ON_A_CPU", num_at_once * 11)
    head = Linear(4, 11, bias=has_bias)
    base_head = copy.deepcopy(head).requires_grad_(False)
    torch.nn.init.normal_(head.weight)
    hidden, base_hidden = numbers(0, 8, 4).requires_grad_(), numbers(1, 8, 4)
    weight = numbers(2, 8)
    ours = head_divergences(hidden, Head.of(head), base_hidden, Head.of(base_head))
    plain = divergences(head(hidden), base_head(base_hidden))
    torch.testing.assert_close(ours, plain)
    learned = [hidden, *head.parameters()]
    found, wanted = (torch.autograd.grad((each * weight).sum(), learned) for each in (ours, plain))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_under_autocast_the_products_are_of_its_type_and_gradients_of_the_weights() -> None:
    head, base_head = Linear(16, 32), Linear(16, 32)
    hidden, base_hidden = numbers(0, 8, 16).requires_grad_(), numbers(1, 8, 16)
    plain = head_divergences(hidden, Head.of(head), base_hidden, Head.of(base_head))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = head_divergences(hidden, Head.of(head), base_hidden, Head.of(base_head))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain, atol=0.05, rtol=0.05)
    grads = torch.autograd.grad(ours.sum(), [hidden, head.weight])
    assert [each.dtype for each in grads] == [torch.float32, torch.float32]


@pytest.mark.parametrize("kind", [*APART, *WHOLE])
def test_a_model_that_gives_losses_gives_the_divergence_of_its_last_rows(kind: str) -> None:
    base, model = make_model(kind).eval(), make_model(kind).eval()
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.1 * torch.randn_like(each))
    ids, length = some_rows()
    with torch.no_grad():
        apart = LanguageLosses(base)
        states = BaseStates.of(base, apart._parts, ids[1:])
        base_logits = base(input_ids=ids[1:], use_cache=False).logits
    ours = LanguageLosses(model)(ids, length, states).divergence_RS
    logits = model(input_ids=ids, use_cache=False).logits
    plain = with_divergence(token_losses(logits, ids, length), logits, BaseStates(base_logits))
    assert ours is not None and plain.divergence_RS is not None
    torch.testing.assert_close(ours, plain.divergence_RS, atol=1e-5, rtol=1e-4)
    expected = exact(logits[1:, :-1].flatten(0, 1), base_logits[:, :-1].flatten(0, 1)).view_as(ours)
    torch.testing.assert_close(ours.double(), expected * plain.mask_BS[1:], atol=1e-5, rtol=1e-4)
    grads = [torch.autograd.grad(each.sum(), list(model.parameters())) for each in (ours, plain.divergence_RS)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_distributed_training_wraps_a_module_that_learns_from_the_base_model(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        base, model, (ids, length) = make_model("tied llama").eval(), make_model("tied llama").eval(), some_rows()
        torch.nn.init.normal_(model.model.norm.weight)
        with torch.no_grad():
            states = BaseStates.of(base, LanguageLosses(base)._parts, ids[1:])
        alone = LanguageLosses(model)(ids, length, states).divergence_RS
        assert alone is not None
        expected = torch.autograd.grad(alone.sum(), list(model.parameters()))
        wrapped = DistributedDataParallel(LanguageLosses(model))(ids, length, states).divergence_RS
        torch.autograd.backward(wrapped.sum())
    finally:
        torch.distributed.destroy_process_group()
    for parameter, wanted in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, atol=1e-6, rtol=1e-4)
