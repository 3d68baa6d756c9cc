"""How far a model's predictions are from those of its base model, over the whole vocabulary.

    D = sum_v p_v (log p_v - log q_v)        nats, the Kullback-Leibler divergence of a prediction

    p   base model, no gradient      q   model in training

With d the gradient of D, the gradient of the model's logits is (q - p) d. So nothing of the size of the logits is kept
for the backward pass but what both models gave: logits, or hidden states alone (`head_divergences`).

Shapes: P predictions, C of them at a time, D hidden size, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Linear

from replay_service.language.losses import wide

_ON_A_CPU: Final = 1 << 20
"""Logits of one model that are taken to float32 together: 4 MiB of them, which a cache holds."""
_ELSEWHERE: Final = 1 << 26


def divergences(logits_PV: Tensor, base_PV: Tensor) -> Tensor:
    """The divergence of each prediction, float32 [P], nats; differentiable with respect to `logits_PV`.

    Args:
        logits_PV: of the model in training, any float type.
        base_PV: of the base model, any float type.
    """
    nats_P: Tensor = _OfLogits.apply(logits_PV, base_PV)  # type: ignore[no-untyped-call]
    return nats_P


class Head(NamedTuple):
    """The last layer of a causal language model."""

    weight_VD: Tensor
    bias_V: Tensor | None

    @classmethod
    def of(cls, head: Linear) -> "Head":
        return cls(head.weight, head.bias)

    def detached(self, dtype: torch.dtype) -> "Head":
        bias_V = None if self.bias_V is None else self.bias_V.detach().to(dtype)
        return Head(self.weight_VD.detach().to(dtype), bias_V)

    def logits(self, hidden_CD: Tensor) -> Tensor:
        return torch.nn.functional.linear(hidden_CD, self.weight_VD, self.bias_V)


def head_divergences(hidden_PD: Tensor, head: Head, base_PD: Tensor, base_head: Head) -> Tensor:
    """As `divergences` of the logits that two heads make of hidden states, without the logits of all predictions.

    Gradients reach `hidden_PD` and the weight and bias of `head`. Under autocast the products are of autocast's type.

    Args:
        hidden_PD: what the head of the model in training takes, any float type.
        base_PD: what the head of the base model takes.
    """
    if torch.is_autocast_enabled(hidden_PD.device.type):
        hidden_PD = hidden_PD.to(torch.get_autocast_dtype(hidden_PD.device.type))
    base_PD = base_PD.detach().to(hidden_PD.dtype)
    nats_P = _OfHidden.apply(hidden_PD, *head, base_PD, *base_head)  # type: ignore[no-untyped-call]
    return cast(Tensor, nats_P)


class _OfLogits(torch.autograd.Function):
    """nats_P of logits_PV and base_PV."""

    @staticmethod
    def forward(ctx: Any, logits_PV: Tensor, base_PV: Tensor) -> Tensor:
        ctx.save_for_backward(logits_PV, base_PV)
        nats_P = torch.empty(len(logits_PV), dtype=wide(logits_PV.dtype), device=logits_PV.device)
        for some in _chunks(logits_PV, logits_PV.shape[1]):
            nats_P[some] = _nats(logits_PV[some], base_PV[some])
        return nats_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor, None]:
        logits_PV, base_PV = ctx.saved_tensors
        grad_PV = torch.empty_like(logits_PV)
        for some in _chunks(logits_PV, logits_PV.shape[1]):
            grad_PV[some] = _gradient(logits_PV[some], base_PV[some], grad_P[some])
        return grad_PV, None


class _OfHidden(torch.autograd.Function):
    """nats_P of hidden_PD, weight_VD, bias_V, and the same three of the base model."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_PD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        base_PD: Tensor,
        base_VD: Tensor,
        base_V: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(hidden_PD, weight_VD, bias_V, base_PD, base_VD, base_V)
        nats_P = torch.empty(len(hidden_PD), dtype=wide(hidden_PD.dtype), device=hidden_PD.device)
        head, base_head = (each.detached(hidden_PD.dtype) for each in (Head(weight_VD, bias_V), Head(base_VD, base_V)))
        for some in _chunks(hidden_PD, len(weight_VD)):
            nats_P[some] = _nats(head.logits(hidden_PD[some]), base_head.logits(base_PD[some]))
        return nats_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor | None, ...]:
        hidden_PD, weight_VD, bias_V, base_PD, base_VD, base_V = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        head, base_head = (each.detached(hidden_PD.dtype) for each in (Head(weight_VD, bias_V), Head(base_VD, base_V)))
        grad_PD = torch.empty_like(hidden_PD) if wants_hidden else None
        # Sums over the chunks, in more digits than the gradient may have.
        grad_VD = grad_P.new_zeros(weight_VD.shape) if wants_weight else None
        grad_V = grad_P.new_zeros(len(weight_VD)) if wants_bias else None
        for some in _chunks(hidden_PD, len(weight_VD)):
            grad_CV = _gradient(head.logits(hidden_PD[some]), base_head.logits(base_PD[some]), grad_P[some])
            if grad_V is not None:
                grad_V += grad_CV.sum(dim=0)
            narrow_CV = grad_CV.to(hidden_PD.dtype)
            if grad_PD is not None:
                grad_PD[some] = narrow_CV @ head.weight_VD
            if grad_VD is not None:
                grad_VD += narrow_CV.t() @ hidden_PD[some]
        weight = None if grad_VD is None else grad_VD.to(weight_VD.dtype)
        bias = None if grad_V is None else grad_V.to(bias_V.dtype)
        return grad_PD, weight, bias, None, None, None


def _chunks(rows: Tensor, vocab_size: int) -> Iterator[slice]:
    """So many predictions at a time that their logits may be taken to float32 together."""
    num_at_once = max(1, (_ON_A_CPU if rows.device.type == "cpu" else _ELSEWHERE) // vocab_size)
    for first in range(0, len(rows), num_at_once):
        yield slice(first, min(first + num_at_once, len(rows)))


def _nats(logits_CV: Tensor, base_CV: Tensor) -> Tensor:
    log_q_CV, log_p_CV = (each.to(wide(each.dtype)).log_softmax(dim=1) for each in (logits_CV, base_CV))
    p_CV = log_p_CV.exp()
    # A token that the base model gives nothing costs nothing, whatever its logarithms are.
    return torch.where(p_CV > 0, p_CV * (log_p_CV - log_q_CV), 0.0).sum(dim=1)


def _gradient(logits_CV: Tensor, base_CV: Tensor, grad_C: Tensor) -> Tensor:
    q_CV, p_CV = (each.to(wide(each.dtype)).softmax(dim=1) for each in (logits_CV, base_CV))
    return q_CV.sub_(p_CV).mul_(grad_C[:, None])
