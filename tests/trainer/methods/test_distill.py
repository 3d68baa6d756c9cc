import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from replay_service.language.scoring import LEAST_LOGPROB
from replay_trainer.errors import InvalidTraining
from replay_trainer.methods.distill import distilled_nats

V = 7
SEEDS = st.integers(0, 2**31)


def random_logits(seed: int, spread: float = 2.0, num_rows: int = 2, num_tokens: int = 4) -> Tensor:
    return spread * torch.randn(num_rows, num_tokens, V, generator=torch.Generator().manual_seed(seed))


def stored(base_BTV: Tensor, k: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """What a corpus holds of the base model's logits: the k likeliest tokens of each prediction."""
    logprobs, ids = base_BTV[:, :-1].double().log_softmax(dim=2).topk(k, dim=2)
    return ids.int(), logprobs.to(dtype)


def everything(logits_BTV: Tensor) -> Tensor:
    return torch.ones(logits_BTV.shape[0], logits_BTV.shape[1] - 1, dtype=torch.bool)


def exact(base_BTV: Tensor, logits_BTV: Tensor) -> Tensor:
    """The divergence over the whole vocabulary, float64."""
    log_p, log_q = (each[:, :-1].double().log_softmax(dim=2) for each in (base_BTV, logits_BTV))
    return (log_p.exp() * (log_p - log_q)).sum(dim=2)


def binned(base_BTV: Tensor, logits_BTV: Tensor, k: int) -> Tensor:
    """The divergence over k tokens and their tail, prediction by prediction, float64."""
    ids_BSk, _ = stored(base_BTV, k)
    rows = []
    for row, ids_Sk in enumerate(ids_BSk.tolist()):
        values = []
        for s, ids in enumerate(ids_Sk):
            p, q = (each[row, s].double().softmax(dim=0) for each in (base_BTV, logits_BTV))
            rest = [token for token in range(V) if token not in ids]
            bins = [(p[token], q[token]) for token in ids] + [(p[rest].sum(), q[rest].sum())]
            values.append(sum(a * (a.log() - b.log()) for a, b in bins))
        rows.append(torch.stack(values))
    return torch.stack(rows)


@given(SEEDS)
def test_with_every_token_stored_it_is_the_exact_divergence(seed: int) -> None:
    base, logits = random_logits(seed), random_logits(seed + 1)
    nats = distilled_nats(logits, *stored(base, V), everything(logits))
    np.testing.assert_allclose(nats, exact(base, logits), rtol=1e-4, atol=1e-5)


@given(SEEDS, st.integers(1, V - 1))
def test_with_fewer_it_is_the_divergence_over_them_and_their_tail(seed: int, k: int) -> None:
    base, logits = random_logits(seed), random_logits(seed + 1)
    nats = distilled_nats(logits, *stored(base, k), everything(logits))
    np.testing.assert_allclose(nats, binned(base, logits, k), rtol=1e-3, atol=1e-5)


@given(SEEDS, st.floats(0, 30))
def test_it_is_never_negative_and_grows_with_k_up_to_the_exact_divergence(seed: int, spread: float) -> None:
    base, logits = random_logits(seed, spread), random_logits(seed + 1, spread)
    by_k = torch.stack([distilled_nats(logits, *stored(base, k), everything(logits)) for k in range(V + 1)])
    slack = 1e-4 + 1e-4 * exact(base, logits)
    assert (by_k >= -1e-5).all()
    assert (by_k.diff(dim=0) >= -slack).all()
    assert (by_k <= exact(base, logits) + slack).all()


@given(SEEDS, st.integers(1, V))
def test_its_gradient_is_that_of_the_definition(seed: int, k: int) -> None:
    base, logits = random_logits(seed), random_logits(seed + 1).requires_grad_()
    reference = exact(base, logits) if k == V else binned(base, logits, k)
    (expected,) = torch.autograd.grad(reference.sum(), logits)
    (gradient,) = torch.autograd.grad(distilled_nats(logits, *stored(base, k), everything(logits)).sum(), logits)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5)


@given(SEEDS, st.integers(0, V))
def test_a_model_that_agrees_with_the_base_model_has_nothing_to_learn(seed: int, k: int) -> None:
    logits = random_logits(seed).requires_grad_()
    nats = distilled_nats(logits, *stored(logits.detach(), k), everything(logits))
    (gradient,) = torch.autograd.grad(nats.sum(), logits)
    assert nats.detach().abs().max() < 1e-5
    assert gradient.abs().max() < 1e-5


@given(SEEDS, st.integers(1, V - 2))
def test_how_the_tail_is_shared_out_costs_nothing(seed: int, k: int) -> None:
    base, logits = random_logits(seed), random_logits(seed)
    ids, logprobs = stored(base, k)
    for row, s in np.ndindex(2, 3):
        tail = [token for token in range(V) if token not in ids[row, s].tolist()]
        logits[row, s, tail] = logits[row, s, tail[1:] + tail[:1]]
    assert distilled_nats(logits, ids, logprobs, everything(logits)).abs().max() < 1e-5


@given(SEEDS, st.integers(1, V), st.floats(0, 200))
def test_float16_logprobs_that_add_up_to_more_than_one_stay_finite_and_close(seed: int, k: int, spread: float) -> None:
    base, logits = random_logits(seed, spread), random_logits(seed + 1).requires_grad_()
    nats = distilled_nats(logits, *stored(base, k, torch.float16), everything(logits))
    (gradient,) = torch.autograd.grad(nats.sum(), logits)
    in_float32 = distilled_nats(logits, *stored(base, k), everything(logits))
    assert gradient.isfinite().all()
    assert (nats >= -1e-5).all()
    np.testing.assert_allclose(nats.detach(), in_float32.detach(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("tail_logit", [-10.0, -50.0, -1e4])
def test_a_tail_of_almost_nothing_is_not_lost_to_rounding(tail_logit: float) -> None:
    logits = torch.full((1, 2, V), tail_logit)
    logits[:, :, 0] = 0
    logits.requires_grad_()
    sure = torch.zeros(1, 1, 1)
    half = torch.full((1, 1, 1), 0.5).log()
    ids, mask = torch.zeros(1, 1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
    assert distilled_nats(logits, ids, sure, mask).item() == pytest.approx(0, abs=1e-3)
    nats = distilled_nats(logits, ids, half, mask)
    assert nats.item() == pytest.approx(-np.log(2) - 0.5 * (tail_logit + np.log(V - 1)), rel=1e-4)
    (gradient,) = torch.autograd.grad(nats.sum(), logits)
    np.testing.assert_allclose(gradient[0, 0], [0.5, *[-0.5 / (V - 1)] * (V - 1)], atol=1e-3)


def test_padding_among_the_likeliest_tokens_belongs_to_the_tail() -> None:
    base, logits = random_logits(0), random_logits(1)
    ids, logprobs = stored(base, 2)
    padded_ids = torch.cat([ids, torch.zeros_like(ids)], dim=2)
    padded_logprobs = torch.cat([logprobs, torch.full_like(logprobs, LEAST_LOGPROB)], dim=2).half()
    nats = distilled_nats(logits, padded_ids, padded_logprobs, everything(logits))
    expected = distilled_nats(logits, ids, logprobs.half(), everything(logits))
    np.testing.assert_allclose(nats, expected, rtol=1e-5, atol=1e-6)


def test_a_prediction_that_is_masked_or_all_padding_costs_nothing_and_pulls_nowhere() -> None:
    base, logits = random_logits(0), random_logits(1).requires_grad_()
    ids, logprobs = stored(base, 3)
    ids[1, 2], logprobs[1, 2] = 0, LEAST_LOGPROB
    mask = everything(logits)
    mask[0, 1] = False
    nats = distilled_nats(logits, ids, logprobs, mask)
    (gradient,) = torch.autograd.grad(nats.sum(), logits)
    for row, s in ((0, 1), (1, 2)):
        assert nats[row, s].item() == pytest.approx(0, abs=1e-6)
        assert gradient[row, s].abs().max() < 1e-6
    assert gradient[:, -1].abs().max() == 0
    assert (nats[0, 0] > 0) & (nats[1, 1] > 0)


def test_bfloat16_logits_are_taken_to_float32_and_nothing_of_that_size_is_kept_for_the_backward_pass() -> None:
    base, logits = random_logits(0), random_logits(1).bfloat16().requires_grad_()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        nats = distilled_nats(logits, *stored(base, 3), everything(logits))
    (gradient,) = torch.autograd.grad(nats.sum(), logits)
    assert (nats.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    assert not [tensor for tensor in kept if tensor.dtype == torch.float32 and tensor.shape[-1] >= V]
    in_float32 = distilled_nats(logits.float(), *stored(base, 3), everything(logits))
    np.testing.assert_array_equal(nats.detach(), in_float32.detach())


def test_no_rows_cost_nothing() -> None:
    logits = torch.zeros(0, 4, V)
    assert distilled_nats(logits, *stored(logits, 2), everything(logits)).shape == (0, 3)


@pytest.mark.parametrize(
    ("ids_shape", "logprobs_shape", "mask_shape", "message"),
    [
        ((2, 3, 2), (2, 3, 1), (2, 3), r"log-probabilities of \(2, 3, 1\)"),
        ((2, 4, 2), (2, 4, 2), (2, 3), "2 rows of 4 tokens"),
        ((2, 3, 2), (2, 3, 2), (2, 4), "2 rows of 4 tokens"),
        ((2, 3, 8), (2, 3, 8), (2, 3), "made with another model"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    ids_shape: tuple[int, ...], logprobs_shape: tuple[int, ...], mask_shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InvalidTraining, match=message):
        distilled_nats(
            random_logits(0), torch.zeros(ids_shape).int(), torch.zeros(logprobs_shape), torch.ones(mask_shape).bool()
        )
