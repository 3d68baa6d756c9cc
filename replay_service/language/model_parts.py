"""Models split into their body and their head, and a module that gives losses in place of logits."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Linear, Module

from replay_service.language.divergence import Head, divergences, head_divergences
from replay_service.language.head import head_losses
from replay_service.language.losses import TokenLosses, token_losses
from replay_service.language.model import evaluating

_NUM_TOKENS = 4
_LARGE_LOGIT = 1e4
"""Beyond every cap of logits, and a float16."""
_HIDDEN_TOLERANCE = 1e-2
"""Relative to the greatest: two passes on a GPU may differ, by rounding; factors before a head are far from 1."""


class ModelParts(NamedTuple):
    """A causal language model whose logits are `head(hidden)`, and nothing more, of what its body gives."""

    body: Any
    head: Linear

    def hidden(self, input_ids_BT: Tensor) -> Tensor:
        """The last hidden state, after the final norm, [B, T, D]."""
        hidden_BTD: Tensor = self.body(input_ids=input_ids_BT, use_cache=False).last_hidden_state
        return hidden_BTD


@torch.no_grad()
def split_model(model: Any) -> ModelParts | None:
    """Body and head of a causal language model; None when this model's head cannot be split.

    Some models cap their logits, scale them or what the head takes, or mask some. So a few tokens are sent through the
    model, which finds large logits of every size in place of those that its head gives: they must come out as they
    went in, and the head must have been given what the body alone gives. Call it in the arithmetic that the model is
    to run in. Neither weights nor generators change.
    """
    body, head = getattr(model, "base_model", None), model.get_output_embeddings()
    if body is None or body is model or type(head) is not Linear:
        return None
    parts = ModelParts(body, head)
    ids_BT = torch.arange(_NUM_TOKENS, device=head.weight.device)[None] % len(head.weight)
    with evaluating(model):
        return parts if _passes_through(model, head, ids_BT, parts) else None


def _passes_through(model: Any, head: Linear, ids_BT: Tensor, parts: ModelParts) -> bool:
    taken: list[Tensor] = []
    given: list[Tensor] = []

    def exchange(_: Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        taken.append(arguments[0])
        large = torch.linspace(-_LARGE_LOGIT, _LARGE_LOGIT, output.numel(), dtype=output.dtype, device=output.device)
        given.append(large.view_as(output))
        return given[-1]

    with head.register_forward_hook(exchange):
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    if len(given) != 1 or not _same(logits_BTV, given[0], 0.0):
        return False
    try:
        return _same(parts.hidden(ids_BT), taken[0], _HIDDEN_TOLERANCE)
    except (AttributeError, TypeError):
        # A body of another kind: it gives something else, or does not take token ids alone.
        return False


def _same(one: Tensor, other: Tensor, tolerance: float) -> bool:
    if one.shape != other.shape:
        return False
    most = other.abs().max()
    return bool(((one.double() - other.double()).abs() <= tolerance * most).all())


class BaseStates(NamedTuple):
    """What a base model says of R rows of T tokens: logits, or hidden states and the head that makes logits of them."""

    states: Tensor
    """[R, T, V] where there is no head, else [R, T, D]."""
    head: Head | None = None

    @classmethod
    def of(cls, model: Any, parts: ModelParts | None, input_ids_RT: Tensor) -> "BaseStates":
        """Those of a base model, by the parts that it is split into, if it is."""
        if parts is None:
            return cls(model(input_ids=input_ids_RT, use_cache=False).logits)
        return cls(parts.hidden(input_ids_RT), Head.of(parts.head))


class LanguageLosses(Module):
    """A causal language model whose forward pass gives losses; DistributedDataParallel can wrap it.

    Its parameters are the model's. A model that cannot be split makes logits, as it would alone.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._parts = split_model(model)

    def forward(self, input_ids_BT: Tensor, length_B: Tensor, base: BaseStates | None = None) -> TokenLosses:
        """Losses of int64 [B, T] tokens within rows of int64 [B] lengths; call it under autocast for bfloat16.

        `base` is what the base model says of the last rows, from which the model's divergence is taken.
        """
        if self._parts is None:
            logits_BTV = self.model(input_ids=input_ids_BT, use_cache=False).logits
            losses = token_losses(logits_BTV, input_ids_BT, length_B)
            return losses if base is None else with_divergence(losses, logits_BTV, base)
        hidden_BTD = self._parts.hidden(input_ids_BT)
        losses = head_losses(hidden_BTD, self._parts.head, input_ids_BT, length_B)
        return losses if base is None else with_divergence(losses, hidden_BTD, base, Head.of(self._parts.head))


def with_divergence(losses: TokenLosses, states_BT: Tensor, base: BaseStates, head: Head | None = None) -> TokenLosses:
    """Losses with the divergence of the last R rows from the base model's predictions.

    Args:
        losses: of B rows.
        states_BT: logits [B, T, V] of the model in training; hidden states [B, T, D] where its head is given.
        base: of the last R rows, with a head where the model's is given.
    """
    found: TokenLosses = _with_divergence(losses, states_BT, base, head)
    return found


# Sizes depend on the rows' lengths, which is nothing for a compiler.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _with_divergence(losses: TokenLosses, states_BT: Tensor, base: BaseStates, head: Head | None) -> TokenLosses:
    mask_RS = losses.mask_BS[len(states_BT) - len(base.states) :]
    place_P = mask_RS.flatten().nonzero().squeeze(1)
    both_RT = states_BT[len(states_BT) - len(base.states) :], base.states
    own_P, base_P = (each[:, :-1].flatten(0, 1).index_select(0, place_P) for each in both_RT)
    if head is None or base.head is None:
        nats_P = divergences(own_P, base_P)
    else:
        nats_P = head_divergences(own_P, head, base_P, base.head)
    nats_RS = nats_P.new_zeros(mask_RS.numel()).index_copy(0, place_P, nats_P).view(mask_RS.shape)
    return losses._replace(divergence_RS=nats_RS)
