"""Models taken apart into their body and their head, and a module that gives losses in place of logits."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Linear, Module

from replay_service.language.head import head_losses
from replay_service.language.losses import TokenLosses, token_losses
from replay_service.language.model import evaluating

_NUM_TOKENS = 4
_LARGE_LOGIT = 1e4
"""Beyond every cap of logits, and a float16."""
_HIDDEN_TOLERANCE = 1e-2
"""Relative to the greatest: two passes on a GPU may differ, by rounding; factors before a head are far from 1."""


class Parts(NamedTuple):
    """A causal language model whose logits are `head(hidden)`, and nothing more, of what its body gives."""

    body: Any
    head: Linear

    def hidden(self, input_ids_BT: Tensor) -> Tensor:
        """The last hidden state, after the final norm, [B, T, D]."""
        hidden_BTD: Tensor = self.body(input_ids=input_ids_BT, use_cache=False).last_hidden_state
        return hidden_BTD


@torch.no_grad()
def take_apart(model: Any) -> Parts | None:
    """Body and head of a causal language model; None when this model's head cannot be taken apart.

    Some models cap their logits, scale them or what the head takes, or mask some. So a few tokens are sent through the
    model, which finds large logits of every size in place of those that its head gives: they must come out as they
    went in, and the head must have been given what the body alone gives. Call it in the arithmetic that the model is
    to run in. Neither weights nor generators change.
    """
    body, head = getattr(model, "base_model", None), model.get_output_embeddings()
    if body is None or body is model or type(head) is not Linear:
        return None
    parts = Parts(body, head)
    ids_BT = torch.arange(_NUM_TOKENS, device=head.weight.device)[None] % len(head.weight)
    with evaluating(model):
        return parts if _passes_through(model, head, ids_BT, parts) else None


def _passes_through(model: Any, head: Linear, ids_BT: Tensor, parts: Parts) -> bool:
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


class LanguageLosses(Module):
    """A causal language model whose forward pass gives losses; DistributedDataParallel can wrap it.

    Its parameters are the model's. A model that cannot be taken apart makes logits, as it would alone.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._parts = take_apart(model)

    def forward(self, input_ids_BT: Tensor, length_B: Tensor) -> TokenLosses:
        """Losses of int64 [B, T] tokens within rows of int64 [B] lengths; call it under autocast for bfloat16."""
        if self._parts is None:
            return token_losses(self.model(input_ids=input_ids_BT, use_cache=False).logits, input_ids_BT, length_B)
        return head_losses(self._parts.hidden(input_ids_BT), self._parts.head, input_ids_BT, length_B)
