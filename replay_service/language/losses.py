"""Per-token losses and hits, the one definition that base losses and training losses share.

Shapes: B rows, T = seq_len tokens, S = T - 1 predictions, V vocabulary, P positions. Prediction s is of the token at
s + 1. `replay_service.language.head` has the same losses from hidden states, without the logits of them all.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

_ON_A_CPU: Final = 1 << 20
"""How many logits are taken to float32 together: 4 MiB of them, which a cache holds."""
_ELSEWHERE: Final = 1 << 26


class TokenLosses(NamedTuple):
    """What a model's logits say of each prediction."""

    nll_BS: Tensor
    """float32 [B, S], nats; zero where there is nothing to predict. Differentiable."""
    correct_BS: Tensor
    """bool [B, S]: no token is likelier than the one that came; False where there is nothing to predict."""
    mask_BS: Tensor
    """bool [B, S]: there is a token to predict."""
    divergence_RS: Tensor | None = None
    """float32 [R, S], nats: how far the last R rows are from the base model's predictions; zero where there is nothing
    to predict. Differentiable. None where the base model was not asked."""

    def mean_nats(self) -> Tensor:
        """Mean loss of each row, float32 [B], nats per predicted token; 0 for a row without predictions."""
        return self.nll_BS.sum(dim=1) / self.mask_BS.sum(dim=1).clamp(min=1)

    def total(self) -> tuple[Tensor, Tensor]:
        """The sum of nats, and how many predictions it is over."""
        return self.nll_BS.sum(), self.mask_BS.sum()


def token_losses(logits_BTV: Tensor, input_ids_BT: Tensor, length_B: Tensor) -> TokenLosses:
    """Losses of the next-token predictions within each row's length.

    Args:
        logits_BTV: any float type; a part at a time is taken to float32 before the softmax. They are kept for the
            backward pass as they came, and their gradient is of their type; nothing else of their size is made.
        input_ids_BT: int64.
        length_B: int64, real tokens of each row; one of fewer than 2 has nothing to predict.
    """
    mask_BS = predicted(input_ids_BT, length_B)
    found = _LossesOfLogits.apply(logits_BTV, input_ids_BT[:, 1:])  # type: ignore[no-untyped-call]
    nll_BS, correct_BS = cast(tuple[Tensor, Tensor], found)
    return TokenLosses(nll_BS * mask_BS, correct_BS & mask_BS, mask_BS)


def predicted(input_ids_BT: Tensor, length_B: Tensor) -> Tensor:
    """bool [B, S]: the token that came is one of the row's."""
    positions_S = torch.arange(1, input_ids_BT.shape[1], device=input_ids_BT.device)
    return positions_S < length_B[:, None]


class PositionLosses(NamedTuple):
    """What the logits of P positions say, each [P]."""

    nll_P: Tensor
    """float32, nats."""
    correct_P: Tensor
    """bool: no token is likelier than the one that came."""
    log_total_P: Tensor
    """float32: logit minus this is log-probability."""


def position_losses(logits_PV: Tensor, target_P: Tensor, *, overwrite: bool = False) -> PositionLosses:
    """Losses of P predictions; gradients do not flow through them.

    Args:
        logits_PV: any float type; taken to float32, or to float64 if that is what they are.
        target_P: int64.
        overwrite: whether such logits may be lost to the arithmetic, which is quicker.
    """
    logits_PV = logits_PV.detach().to(wide(logits_PV.dtype))
    chosen_P = logits_PV.gather(1, target_P[:, None]).squeeze(1)
    most_P = logits_PV.amax(dim=1)
    below_PV = logits_PV.sub_(most_P[:, None]) if overwrite else logits_PV - most_P[:, None]
    log_total_P = below_PV.exp_().sum(dim=1).log() + most_P
    return PositionLosses(log_total_P - chosen_P, chosen_P >= most_P, log_total_P)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type that sums of exponentials are formed in."""
    return torch.promote_types(dtype, torch.float32)


class _LossesOfLogits(torch.autograd.Function):
    """nll_BS and correct_BS of logits_BTV and target_BS; the logits of the last position are not looked at.

    Autograd of the plain formula would keep the exponentials of all logits in float32. With d the gradient of a loss
    and p the softmax, the gradient of its logits is (p - 1 at the target) d.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, logits_BTV: Tensor, target_BS: Tensor) -> tuple[Tensor, Tensor]:
        nll_BS = torch.empty(target_BS.shape, dtype=wide(logits_BTV.dtype), device=logits_BTV.device)
        log_total_BS, correct_BS = torch.empty_like(nll_BS), torch.empty_like(nll_BS, dtype=torch.bool)
        for part in _parts(logits_BTV):
            losses = position_losses(logits_BTV[part], target_BS[part])
            nll_BS[part], correct_BS[part], log_total_BS[part] = losses
        ctx.save_for_backward(logits_BTV, target_BS, log_total_BS)
        ctx.mark_non_differentiable(correct_BS)
        return nll_BS, correct_BS

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BS: Tensor, _: Tensor) -> tuple[Tensor, None]:
        logits_BTV, target_BS, log_total_BS = ctx.saved_tensors
        grad_BTV = torch.empty_like(logits_BTV)
        grad_BTV[:, -1] = 0
        for part in _parts(logits_BTV):
            below_PV = logits_BTV[part].to(log_total_BS.dtype) - log_total_BS[part][:, None]
            grad_BTV[part] = logits_gradient_(below_PV, target_BS[part], grad_BS[part])
        return grad_BTV, None


def _parts(logits_BTV: Tensor) -> Iterator[tuple[int, slice]]:
    """A row and some of its positions but the last, so many that their logits may be taken to float32 together."""
    num_rows, num_positions, vocab_size = logits_BTV.shape
    at_once = _ON_A_CPU if logits_BTV.device.type == "cpu" else _ELSEWHERE
    num_at_once = max(1, at_once // vocab_size)
    for row in range(num_rows):
        for first in range(0, num_positions - 1, num_at_once):
            yield row, slice(first, min(first + num_at_once, num_positions - 1))


def logits_gradient_(below_PV: Tensor, place_P: Tensor, grad_P: Tensor, here_P: Tensor | None = None) -> Tensor:
    """The gradient of logits, in place of `below_PV`, which holds their log-probabilities.

    Args:
        below_PV: float32 [P, V], overwritten.
        place_P: int64 [P], the column of the token that came.
        grad_P: the gradient of each loss.
        here_P: bool [P], whether that column is among these; by default it is everywhere.
    """
    hit_P = torch.ones_like(grad_P) if here_P is None else here_P.to(grad_P.dtype)
    return below_PV.exp_().scatter_add_(1, place_P[:, None], -hit_P[:, None]).mul_(grad_P[:, None])
