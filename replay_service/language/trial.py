"""Trying a causal language model with a few tokens, for what its configuration does not tell.

Shapes: T tokens, V vocabulary.
"""

from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from replay_service.errors import CorpusError
from replay_service.language.model import evaluating, too_long

_NUM_TOKENS: Final = 8
_LEAK: Final = 0.1
"""What a later token changes before it, beside what it changes after it: 1 in a model that sees it, else rounding."""
_ROUNDING: Final = 1e-5
"""Relative to the greatest logit."""


@torch.no_grad()
def check_model(model: Any, seq_len: int) -> None:
    """Try whether a model predicts from left to right, and whether it takes rows of `seq_len` tokens.

    Call it in the arithmetic and on the device that the model is to run in. Neither weights nor generators change.

    Raises:
        CorpusError: when it does not.
    """
    with evaluating(model):
        _check_causal(model)
        check_takes(partial(_run_row, model), seq_len)


def _check_causal(model: Any) -> None:
    """The logits before a token must stay as they are when it is another one."""
    changed = _NUM_TOKENS // 2
    *known, other = _tokens(model, _NUM_TOKENS + 1)
    rows_2T = torch.tensor([known, [*known[:changed], other, *known[changed + 1 :]]])
    logits_2TV = _logits(model, rows_2T).float()
    change_T = (logits_2TV[0] - logits_2TV[1]).abs().amax(dim=1)
    leak, seen = change_T[:changed].max(), change_T[changed + 1 :].max()
    if leak > _LEAK * seen and leak > _ROUNDING * logits_2TV.abs().max():
        raise CorpusError(
            f"the model ({model.config.model_type}) is not causal: its predictions change with the tokens that come "
            "after them, so its losses would mean nothing; take a causal language model, or set is_decoder in the "
            "config.json of one that was trained as a decoder"
        )


def _run_row(model: Any, length: int) -> None:
    """Without the head: the logits of a whole row may be too large to exist."""
    ids_1T = torch.full((1, length), _tokens(model, 1)[0], device=model.device)
    model.base_model(input_ids=ids_1T, use_cache=False)


def check_takes(run: Callable[[int], object], seq_len: int) -> None:
    """Find whether a model takes as many tokens as `seq_len`.

    Args:
        run: calls the model with so many tokens.
        seq_len: at least 1.

    Raises:
        CorpusError: when it does not; says how many it takes, and if it takes none, why.
    """
    error = _error_of(run, seq_len)
    if error is None:
        return
    # How many of the lengths below it can be taken.
    most = bisect_left(range(1, seq_len), True, key=lambda length: _error_of(run, length) is not None)
    if not most:
        raise CorpusError(f"the model cannot run: {error}") from error
    raise too_long(seq_len, most) from error


def _error_of(run: Callable[[int], object], length: int) -> Exception | None:
    try:
        with _BoundsOfEmbeddings():
            run(length)
    except torch.OutOfMemoryError:
        raise
    except (IndexError, RuntimeError, ValueError) as error:
        return error
    return None


def _logits(model: Any, ids_BT: Tensor) -> Tensor:
    logits_BTV: Tensor = model(input_ids=ids_BT.to(model.device), use_cache=False).logits
    return logits_BTV


def _tokens(model: Any, num: int) -> list[int]:
    """Ids from all over the vocabulary, different if there are as many, without that of padding."""
    vocab_size = len(model.get_input_embeddings().weight)
    padding = getattr(model.config, "pad_token_id", None)
    spread = [vocab_size * place // (num + 2) for place in range(num + 2)]
    return [token for token in spread[1:] if token != padding][:num]


class _BoundsOfEmbeddings(TorchFunctionMode):
    """Within it, an index beyond an embedding is an IndexError. On a GPU it would end all use of the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.embedding:
            weight, index = args[:2]
            if index.numel() and int(index.max()) >= len(weight):
                raise IndexError(f"an index of {int(index.max())} into an embedding of {len(weight)} rows")
        return func(*args, **(kwargs or {}))
