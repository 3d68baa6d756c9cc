"""Losses from the last hidden state and the model's head, so that the logits of all tokens never exist at once.

Shapes: B rows, T tokens, S = T - 1 predictions, D hidden size, V vocabulary, P predictions, N tokens of one slice of
the vocabulary, K slices. A tile is the logits of some predictions and one slice: it fits into a cache, and its memory
is used again and again. In the backward pass tiles are computed a second time. The idea of tiles is that of Wijmans,
Huval, Hertzberg, Koltun, Krahenbuhl: "Cut Your Losses in Large-Vocabulary Language Models", ICLR 2025.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Linear

from replay_service.language.losses import PositionLosses, TokenLosses, logits_gradient_, predicted, wide

CHUNK: Final = 1024
"""Predictions of a tile."""
_SLICE_ON_A_CPU: Final = 4096
"""Tokens of a tile: its logits in float32 are 16 MiB."""
_SLICE_ELSEWHERE: Final = 8192


def head_losses(
    hidden_BTD: Tensor, head: Linear, input_ids_BT: Tensor, length_B: Tensor, *, chunk: int = CHUNK
) -> TokenLosses:
    """What `token_losses(head(hidden_BTD), input_ids_BT, length_B)` gives, but for rounding, in little memory.

    Gradients reach the hidden state and the head's weight and bias. Only predictions within the rows' lengths are
    computed. Under autocast the head's products are of autocast's type, as they would be in `head(hidden_BTD)`.

    Args:
        hidden_BTD: what the head takes, any float type.
        head: its weight is [V, D].
        input_ids_BT: int64.
        length_B: int64, real tokens of each row; one of fewer than 2 has nothing to predict.
        chunk: most predictions of a tile.
    """
    losses: TokenLosses = _head_losses(hidden_BTD, head, input_ids_BT, length_B, chunk)
    return losses


# Sizes depend on the rows' lengths, which is nothing for a compiler.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _head_losses(hidden_BTD: Tensor, head: Linear, input_ids_BT: Tensor, length_B: Tensor, chunk: int) -> TokenLosses:
    mask_BS = predicted(input_ids_BT, length_B)
    place_P = mask_BS.flatten().nonzero().squeeze(1)
    hidden_PD = hidden_BTD[:, :-1].flatten(0, 1).index_select(0, place_P)
    target_P = input_ids_BT[:, 1:].flatten().index_select(0, place_P)
    if torch.is_autocast_enabled(hidden_PD.device.type):
        hidden_PD = hidden_PD.to(torch.get_autocast_dtype(hidden_PD.device.type))
    found = _LossesOfHidden.apply(hidden_PD, head.weight, head.bias, target_P, chunk)  # type: ignore[no-untyped-call]
    nll_P, correct_P = cast(tuple[Tensor, Tensor], found)
    nll_BS = nll_P.new_zeros(mask_BS.numel()).index_copy(0, place_P, nll_P).view(mask_BS.shape)
    correct_BS = torch.zeros_like(mask_BS).flatten().index_copy(0, place_P, correct_P).view(mask_BS.shape)
    return TokenLosses(nll_BS, correct_BS, mask_BS)


def hidden_losses(
    hidden_PD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_P: Tensor, *, chunk: int = CHUNK
) -> PositionLosses:
    """Losses of P predictions; gradients do not flow through them.

    Args:
        hidden_PD: any float type, which is that of the products.
        weight_VD: any float type.
        bias_V: any float type.
        target_P: int64.
    """
    head = _Tiles.of(hidden_PD, weight_VD, bias_V, chunk)
    chosen_P = torch.zeros(len(target_P), dtype=wide(hidden_PD.dtype), device=hidden_PD.device)
    most_KP = chosen_P.new_empty(head.num_slices, len(target_P))
    total_KP = torch.empty_like(most_KP)
    for number, part in enumerate(head.slices()):
        for some in head.chunks():
            logits_CN = head.logits(hidden_PD[some], part)
            place_C, here_C = part.find(target_P[some])
            chosen_C = logits_CN.gather(1, place_C[:, None]).squeeze(1)
            chosen_P[some] = torch.where(here_C, chosen_C, chosen_P[some])
            most_KP[number, some] = logits_CN.amax(dim=1)
            below_CN = logits_CN.sub_(most_KP[number, some, None])
            total_KP[number, some] = below_CN.exp_().sum(dim=1)
    most_P = most_KP.amax(dim=0)
    log_total_P = (total_KP * (most_KP - most_P).exp()).sum(dim=0).log() + most_P
    return PositionLosses(log_total_P - chosen_P, chosen_P >= most_P, log_total_P)


def chunked_logits(hidden_PD: Tensor, head: Linear, memory: Tensor) -> Iterator[Tensor]:
    """The whole logits of P predictions, [C, V] of as many at a time as `memory` holds, which they are in."""
    head_VD, vocab_size = head.weight.detach(), len(head.weight)
    bias_V = None if head.bias is None else head.bias.to(hidden_PD.dtype)
    num_at_once = len(memory) // vocab_size
    for first in range(0, len(hidden_PD), num_at_once):
        some_CD = hidden_PD[first : first + num_at_once]
        yield _product_(some_CD, head_VD, bias_V, memory[: len(some_CD) * vocab_size].view(-1, vocab_size))


def _product_(hidden_CD: Tensor, weight_ND: Tensor, bias_N: Tensor | None, out_CN: Tensor) -> Tensor:
    if bias_N is None:
        return torch.mm(hidden_CD, weight_ND.t(), out=out_CN)
    return torch.addmm(bias_N, hidden_CD, weight_ND.t(), out=out_CN)


class _LossesOfHidden(torch.autograd.Function):
    """nll_P and correct_P of hidden_PD, weight_VD, bias_V and target_P."""

    @staticmethod
    def forward(
        ctx: Any, hidden_PD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_P: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        losses = hidden_losses(hidden_PD, weight_VD, bias_V, target_P, chunk=chunk)
        ctx.save_for_backward(hidden_PD, weight_VD, bias_V, target_P, losses.log_total_P)
        ctx.mark_non_differentiable(losses.correct_P)
        ctx.chunk = chunk
        return losses.nll_P, losses.correct_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_PD, weight_VD, bias_V, target_P, log_total_P = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        head = _Tiles.of(hidden_PD, weight_VD, bias_V, ctx.chunk)
        grad_PD = torch.zeros_like(hidden_PD, dtype=grad_P.dtype) if wants_hidden else None
        grad_VD = torch.empty_like(weight_VD) if wants_weight else None
        grad_V = torch.empty_like(bias_V) if wants_bias else None
        for part in head.slices():
            # Sums over the chunks, in more digits than the gradient may have.
            grad_ND = grad_P.new_zeros(part.weight_ND.shape) if wants_weight else None
            grad_N = grad_P.new_zeros(len(part.weight_ND)) if wants_bias else None
            for some in head.chunks():
                below_CN = head.logits(hidden_PD[some], part).sub_(log_total_P[some, None])
                place_C, here_C = part.find(target_P[some])
                grad_CN = logits_gradient_(below_CN, place_C, grad_P[some], here_C)
                if grad_N is not None:
                    grad_N += grad_CN.sum(dim=0)
                narrow_CN = grad_CN.to(hidden_PD.dtype)
                if grad_PD is not None:
                    _add_product(grad_PD[some], narrow_CN, part.weight_ND)
                if grad_ND is not None:
                    _add_product(grad_ND, narrow_CN.t(), hidden_PD[some])
            if grad_VD is not None and grad_ND is not None:
                grad_VD[part.columns] = grad_ND
            if grad_V is not None and grad_N is not None:
                grad_V[part.columns] = grad_N
        return None if grad_PD is None else grad_PD.to(hidden_PD.dtype), grad_VD, grad_V, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right`, where the total may have more digits."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


class _Slice(NamedTuple):
    """Some of the head's tokens, in the type of the products."""

    columns: slice
    weight_ND: Tensor
    bias_N: Tensor | None

    def find(self, target_P: Tensor) -> tuple[Tensor, Tensor]:
        """The column of each target in a tile, int64 [P], any where it is not there; whether it is there, bool [P]."""
        place_P = target_P - self.columns.start
        here_P = (place_P >= 0) & (place_P < len(self.weight_ND))
        return place_P.clamp(0, len(self.weight_ND) - 1), here_P


@dataclass(frozen=True, slots=True)
class _Tiles:
    """The logits of `num_predictions` hidden states, a tile at a time, in memory that all of them share."""

    num_predictions: int
    weight_VD: Tensor
    bias_V: Tensor | None
    chunk: int
    width: int
    products: Tensor
    """[chunk * width], in the type of the hidden state."""
    sums: Tensor
    """[chunk * width], in the type of the losses."""

    @classmethod
    def of(cls, hidden_PD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, chunk: int) -> "_Tiles":
        width = min(len(weight_VD), _SLICE_ON_A_CPU if hidden_PD.device.type == "cpu" else _SLICE_ELSEWHERE)
        products = hidden_PD.new_empty(min(chunk, len(hidden_PD)) * width)
        # Where nothing is to be rounded they are the same memory.
        wider = wide(products.dtype)
        sums = products if products.dtype == wider else products.new_empty(products.shape, dtype=wider)
        return cls(len(hidden_PD), weight_VD.detach(), bias_V, chunk, width, products, sums)

    @property
    def num_slices(self) -> int:
        return -(-len(self.weight_VD) // self.width)

    def slices(self) -> Iterator[_Slice]:
        for first in range(0, len(self.weight_VD), self.width):
            columns = slice(first, min(first + self.width, len(self.weight_VD)))
            bias_N = None if self.bias_V is None else self.bias_V[columns].to(self.products.dtype)
            yield _Slice(columns, self.weight_VD[columns].to(self.products.dtype), bias_N)

    def chunks(self) -> Iterator[slice]:
        for first in range(0, self.num_predictions, self.chunk):
            yield slice(first, min(first + self.chunk, self.num_predictions))

    def logits(self, hidden_CD: Tensor, part: _Slice) -> Tensor:
        """[C, N]; lost when the next ones are asked for."""
        shape = (len(hidden_CD), len(part.weight_ND))
        products_CN, sums_CN = (each[: shape[0] * shape[1]].view(shape) for each in (self.products, self.sums))
        _product_(hidden_CD, part.weight_ND, part.bias_N, products_CN)
        return products_CN if self.sums is self.products else sums_CN.copy_(products_CN)
