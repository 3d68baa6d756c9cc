"""Distilled rehearsal: a rehearsed sample teaches what the base model would have said of it.

With cross-entropy a rehearsed token pulls towards the one token that came. Here it pulls towards the base model's whole
next-token distribution, which is what shall not be forgotten. This is the idea of Dark Experience Replay (Buzzega,
Boschi, Porrello, Abati, Calderara, NeurIPS 2020, arXiv 2004.07211: there, squared distance to stored logits), brought
to language with what a corpus can afford to store. That is this project's choice; the papers of its other methods do
not have it.

The corpus holds, of each prediction, the k tokens that the base model found likeliest and their log-probabilities. All
other tokens are one more bin, the tail. The loss of a prediction is the Kullback-Leibler divergence over these k + 1
bins:

    sum_i p_i (log p_i - log q_i) + p_tail (log p_tail - log q_tail)        nats

    p   base model, stored            p_tail = 1 - sum_i p_i
    q   model in training             q_tail = sum of q over the tokens that are not among the k

It is zero where the model agrees with the base model on every bin. It is at most the divergence over the whole
vocabulary, and grows towards it with k: to merge bins loses information and never adds any. How the model shares out
the tail costs nothing, so that it may learn there.

No second model and no second forward pass: the base model spoke when the corpus was made.

    stage       takes                                   does                                   gives
    base bins   stored log-probabilities                adds the tail, makes the sum one       p, log p
    bins        logits of one row, in float32           sums up the tail's                     log q
    divergence  both                                    sum of p (log p - log q)               nats of each prediction

Shapes: B rows, T tokens, S = T - 1 predictions, k stored tokens, K = k + 1 bins, V vocabulary. Prediction s is of the
token at s + 1, as in `replay_service.language.losses`.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from replay_service.language.scoring import LEAST_LOGPROB
from replay_trainer.errors import InvalidTraining


def distilled_nats(logits_BTV: Tensor, topk_ids_BSk: Tensor, topk_logprobs_BSk: Tensor, mask_BS: Tensor) -> Tensor:
    """How far the model's predictions are from the base model's, each.

    Beside a training loop, with the rehearsed rows of a batch:

        nats_BS = distilled_nats(logits_BTV, topk_ids_BSk, topk_logprobs_BSk, losses.mask_BS)
        loss = nats_BS.sum() / losses.mask_BS.sum()

    Args:
        logits_BTV: the model's, of any float type; taken to float32, a row at a time, here and again in the backward
            pass, so that no float32 copy of them all is kept. The last position predicts nothing.
        topk_ids_BSk: any integer type, the base model's likeliest tokens, each below V and none twice.
        topk_logprobs_BSk: any float type, their natural log-probabilities under the base model. An entry of
            `LEAST_LOGPROB` or less is padding: its token belongs to the tail. Rounded to float16 they may add up to
            slightly more than one; they are scaled to one then, and the tail is empty.
        mask_BS: bool, where there is something to learn.

    Returns:
        float32 [B, S], nats; zero where `mask_BS` is False, or where all k entries are padding. Differentiable with
        respect to the logits.

    Raises:
        InvalidTraining: when the shapes do not fit each other.
    """
    _check_shapes(logits_BTV, topk_ids_BSk, topk_logprobs_BSk, mask_BS)
    rows = [
        # What a row's arithmetic holds, several times its logits, is made anew in the backward pass and not kept.
        checkpoint(_row_nats, *row, use_reentrant=False, preserve_rng_state=False)
        for row in zip(logits_BTV, topk_ids_BSk, topk_logprobs_BSk, strict=True)
    ]
    return torch.where(mask_BS, torch.stack(rows), 0.0) if rows else logits_BTV.new_zeros(mask_BS.shape).float()


class _BaseBins(NamedTuple):
    """Probabilities of the base model, over K bins, the tail last; they add up to one."""

    p_SK: Tensor
    """float32, probabilities."""
    log_p_SK: Tensor
    """float32; anything where p is zero."""
    stored_Sk: Tensor
    """bool: a token, and no padding."""
    no_tail_S: Tensor
    """bool: every token of the vocabulary is stored."""


def _row_nats(logits_TV: Tensor, topk_ids_Sk: Tensor, topk_logprobs_Sk: Tensor) -> Tensor:
    base = _base_bins(topk_logprobs_Sk, logits_TV.shape[1])
    log_q_SK = _log_bins(logits_TV[:-1].float(), topk_ids_Sk.long(), base)
    # A bin that the base model gives nothing costs nothing, whatever its logarithms are.
    return torch.where(base.p_SK > 0, base.p_SK * (base.log_p_SK - log_q_SK), 0.0).sum(dim=1)


@torch.no_grad()
def _base_bins(topk_logprobs_Sk: Tensor, vocab_size: int) -> _BaseBins:
    stored_Sk = topk_logprobs_Sk > LEAST_LOGPROB
    no_tail_S = stored_Sk.sum(dim=1) == vocab_size
    p_Sk = torch.where(stored_Sk, topk_logprobs_Sk.float().exp(), 0.0)
    tail_S1 = torch.where(no_tail_S[:, None], 0.0, (1 - p_Sk.sum(dim=1, keepdim=True)).clamp(min=0))
    p_SK = torch.cat([p_Sk, tail_S1], dim=1)
    p_SK = p_SK / p_SK.sum(dim=1, keepdim=True)
    return _BaseBins(p_SK, p_SK.log(), stored_Sk, no_tail_S)


def _log_bins(logits_SV: Tensor, topk_ids_Sk: Tensor, base: _BaseBins) -> Tensor:
    """The model's log-probabilities of the bins, float32 [S, K]; -inf for padding, and for a tail of no tokens.

    The tail's logits are summed up as they are: one minus the k others would lose a small tail to rounding.
    """
    inf = float("inf")
    vocab_size = logits_SV.shape[1]
    # One more column takes what is no token: padding, or a number that keeps the logarithm of an empty tail finite.
    column_S1 = torch.where(base.no_tail_S, 0.0, -inf)[:, None]
    tail_SV = torch.cat([logits_SV, column_S1], dim=1)
    tail_SV = tail_SV.scatter(1, topk_ids_Sk.where(base.stored_Sk, vocab_size), -inf)
    tail_S1 = tail_SV.logsumexp(dim=1, keepdim=True).masked_fill(base.no_tail_S[:, None], -inf)
    stored_Sk = logits_SV.gather(1, topk_ids_Sk).masked_fill(~base.stored_Sk, -inf)
    return torch.cat([stored_Sk, tail_S1], dim=1).log_softmax(dim=1)


def _check_shapes(logits_BTV: Tensor, topk_ids_BSk: Tensor, topk_logprobs_BSk: Tensor, mask_BS: Tensor) -> None:
    num_rows, num_tokens, vocab_size = logits_BTV.shape
    predictions = (num_rows, num_tokens - 1)
    if topk_ids_BSk.shape != topk_logprobs_BSk.shape or topk_ids_BSk.ndim != 3:
        raise InvalidTraining(
            f"the likeliest tokens are of shape {tuple(topk_ids_BSk.shape)} and their log-probabilities of "
            f"{tuple(topk_logprobs_BSk.shape)}; both must be [B, S, k]"
        )
    if topk_ids_BSk.shape[:2] != predictions or mask_BS.shape != predictions:
        raise InvalidTraining(
            f"{num_rows} rows of {num_tokens} tokens make {predictions} predictions; the likeliest tokens are of "
            f"{tuple(topk_ids_BSk.shape[:2])}, the mask of {tuple(mask_BS.shape)}"
        )
    if topk_ids_BSk.shape[2] > vocab_size:
        raise InvalidTraining(
            f"{topk_ids_BSk.shape[2]} likeliest tokens of each prediction are stored and the model knows {vocab_size}; "
            "the corpus was made with another model"
        )
