"""Flat batches: samples end to end in one row, without padding, as transformers' DataCollatorWithFlattening makes them.

`position_ids` begin anew where a sample begins; by them the model keeps samples apart. A rehearsed row joins as one
sample, with the positions and the attention over all of itself with which its base loss was measured.

Not every model keeps flat samples apart. What transformers 5 makes its masks by (`masking_utils.create_causal_mask`)
does with every kind of attention, but neither beside an attention mask nor where the model fills a cache, which
`config.use_cache` says and which is the default. So a model is tried (`check_isolation`).

Shapes: T tokens of the flat row, the last L of them rehearsed, R rehearsed rows, S = seq_len - 1, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from replay_service.classification.losses import IGNORED
from replay_service.language.losses import TokenLosses, predicted, token_losses
from replay_service.wire.batches import Batch
from replay_trainer.errors import InvalidTraining

_ROWS: Final = ("input_ids", "labels", "position_ids", "seq_idx")
_BOUNDS: Final = ("cu_seq_lens_q", "cu_seq_lens_k")
_LENGTHS: Final = ("max_length_q", "max_length_k")

_SAMPLE: Final = 4
"""Tokens of each of the two samples that a model is tried with."""
_LEAK: Final = 0.1
"""The effect of a token of another sample, relative to one of the same: 1 without a mask, with one rounding."""


def is_padding_free(inputs: Mapping[str, Any]) -> bool:
    """Whether a loader's batch is flat."""
    return "position_ids" in inputs


def num_samples(position_1T: Tensor) -> int:
    """How many samples a flat row holds: one begins wherever positions do not go on."""
    return int((position_1T[0, 1:] != position_1T[0, :-1] + 1).sum()) + 1


def add_flat_rows(inputs: Mapping[str, Any], rehearsed: Batch) -> dict[str, Any]:
    """A flat batch with the tokens of rehearsed rows at its end, each row a sample.

    Args:
        inputs: `input_ids`, `labels` and `position_ids`, int64 [1, T - L]; perhaps `seq_idx`, int32 [1, T - L],
            `cu_seq_lens_q` and `cu_seq_lens_k`, int32 [samples + 1], `max_length_q` and `max_length_k`.
        rehearsed: R rows, of which L tokens are real.

    Raises:
        InvalidTraining: when the batch holds something else, or several rows.
    """
    _check(inputs)
    length_R = torch.from_numpy(rehearsed.length[rehearsed.length > 0].astype("int64"))
    if not len(length_R):
        return dict(inputs)
    position_L = torch.cat([torch.arange(length) for length in length_R.tolist()])
    ids_L = _flattened(rehearsed)
    theirs = {
        "input_ids": ids_L,
        # Nothing before a sample tells of its first token.
        "labels": ids_L.masked_fill(position_L == 0, IGNORED),
        "position_ids": position_L + inputs["position_ids"][0, 0].cpu(),
    }
    if "seq_idx" in inputs:
        last = inputs["seq_idx"][0, -1].cpu()
        theirs["seq_idx"] = torch.arange(len(length_R)).repeat_interleave(length_R) + last + 1
    mixed = dict(inputs)
    for name, tokens_L in theirs.items():
        mixed[name] = torch.cat([inputs[name], tokens_L.to(inputs[name])[None]], dim=1)
    for name in inputs.keys() & set(_BOUNDS):
        ends_R = (length_R.cumsum(0) + inputs["input_ids"].shape[1]).to(inputs[name])
        mixed[name] = torch.cat([inputs[name], ends_R])
    for name in inputs.keys() & set(_LENGTHS):
        mixed[name] = max(inputs[name], int(length_R.max()))
    return mixed


def flat_losses(logits_1TV: Tensor, rehearsed: Batch) -> TokenLosses:
    """Losses of the rehearsed rows at the end of a flat batch, as of rows of their own, [R, S]; differentiable."""
    device, ids_L = logits_1TV.device, _flattened(rehearsed)
    length_R = torch.from_numpy(rehearsed.length.astype("int64")).to(device)
    mask_RS = predicted(torch.from_numpy(rehearsed.input_ids.astype("int64")).to(device), length_R)
    # Of rows that could not be read there is no token; one that is not looked at keeps the losses differentiable.
    width = max(1, len(ids_L))
    ids_1L = pad(ids_L, (0, width - len(ids_L))).to(device)[None]
    flat = token_losses(logits_1TV[:, -width:], ids_1L, length_R.sum()[None])
    first_R1 = (length_R.cumsum(0) - length_R)[:, None]
    place_P = (first_R1 + torch.arange(mask_RS.shape[1], device=device))[mask_RS]
    nll_RS = torch.zeros_like(mask_RS, dtype=flat.nll_BS.dtype)
    nll_RS = nll_RS.masked_scatter(mask_RS, flat.nll_BS[0].index_select(0, place_P))
    correct_RS = torch.zeros_like(mask_RS).masked_scatter(mask_RS, flat.correct_BS[0].index_select(0, place_P))
    return TokenLosses(nll_RS, correct_RS, mask_RS)


def flat_logits(logits_1TV: Tensor, rehearsed: Batch) -> Tensor:
    """The logits of the rehearsed rows at the end of a flat batch, as of rows of their own, [R, seq_len, V].

    Beyond a row's length they are those of other tokens. Differentiable.
    """
    length_R = torch.from_numpy(rehearsed.length.astype("int64")).to(logits_1TV.device)
    num_tokens = logits_1TV.shape[1]
    first_R1 = (num_tokens - length_R.sum() + length_R.cumsum(0) - length_R)[:, None]
    place_RT = first_R1 + torch.arange(rehearsed.input_ids.shape[1], device=length_R.device)
    return logits_1TV[0].index_select(0, place_RT.clamp(max=num_tokens - 1).flatten()).view(*place_RT.shape, -1)


@torch.no_grad()
def check_isolation(model: Any, inputs: Mapping[str, Any]) -> None:
    """Try whether a model keeps the samples of flat batches apart, as it is called in training.

    Two samples of a few tokens are sent through it three times. With another token in the first sample, the logits of
    the second must stay as they are; with another in the second they show what a token that is seen does. Dropout is
    the same each time. Neither weights nor generators change.

    Args:
        model: any callable module; its logits are [1, tokens, V].
        inputs: a flat batch of the loop, whose first tokens and device are used.

    Raises:
        InvalidTraining: when it does not.
    """
    _check(inputs)
    ids_T = inputs["input_ids"][0]
    tokens_T = ids_T.new_tensor(_distinct(ids_T.tolist(), 2 * _SAMPLE + 1))
    known_T, other = tokens_T[:-1], tokens_T[-1]
    elsewhere_T, within_T = known_T.clone(), known_T.clone()
    elsewhere_T[_SAMPLE - 1], within_T[_SAMPLE] = other, other
    devices = [ids_T.device] if ids_T.is_cuda else []
    found = []
    for tokens in (known_T, elsewhere_T, within_T):
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)
            found.append(_logits_of(model, tokens, inputs)[_SAMPLE + 1 :])
    leak, visible = ((each - found[0]).abs().max() for each in found[1:])
    if not leak <= _LEAK * visible:
        raise InvalidTraining(
            "the batches are flat, but in this model tokens see the samples before theirs; set "
            "model.config.use_cache to False, take an attention that keeps samples apart, such as sdpa or "
            "flash_attention_2, or take a collator that pads"
        )


def _check(inputs: Mapping[str, Any]) -> None:
    unknown = inputs.keys() - {*_ROWS, *_BOUNDS, *_LENGTHS}
    if unknown:
        raise InvalidTraining(
            f"the flat batch has {', '.join(sorted(unknown))}, of which rehearsed rows know nothing; leave out all but "
            f"{', '.join((*_ROWS, *_BOUNDS, *_LENGTHS))}"
        )
    shapes = {name: tuple(inputs[name].shape) for name in _ROWS if name in inputs}
    if len(set(shapes.values())) != 1 or len(inputs["input_ids"]) != 1 or not inputs["input_ids"].numel():
        raise InvalidTraining(
            f"a batch with position_ids must be one row of samples end to end, not {shapes}; leave position_ids out "
            "of padded batches"
        )


def _flattened(rehearsed: Batch) -> Tensor:
    """The real tokens of all rows, int64 [L]."""
    ids_RT = torch.from_numpy(rehearsed.input_ids.astype("int64"))
    length_R1 = torch.from_numpy(rehearsed.length.astype("int64"))[:, None]
    return ids_RT[torch.arange(ids_RT.shape[1]) < length_R1]


def _distinct(known: list[int], num: int) -> list[int]:
    """As many different token ids: those of a batch, then the smallest others."""
    found = list(dict.fromkeys(known))[:num]
    return found + [token for token in range(2 * num) if token not in found][: num - len(found)]


def _logits_of(model: Any, ids_T: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Logits of two samples in a flat batch that holds what the loop's batches do, float32 [tokens, V]."""
    position_T = torch.arange(_SAMPLE, device=ids_T.device).repeat(2) + inputs["position_ids"][0, 0]
    bounds = torch.tensor([0, _SAMPLE, 2 * _SAMPLE], dtype=torch.int32, device=ids_T.device)
    called: dict[str, Any] = {"input_ids": ids_T[None], "position_ids": position_T[None]}
    called |= {name: bounds for name in _BOUNDS if name in inputs}
    called |= {name: _SAMPLE for name in _LENGTHS if name in inputs}
    if "seq_idx" in inputs:
        called["seq_idx"] = torch.arange(2, dtype=torch.int32, device=ids_T.device).repeat_interleave(_SAMPLE)[None]
    logits_TV: Tensor = model(**called).logits[0]
    return logits_TV.float()
