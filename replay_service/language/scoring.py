"""Scoring rows with the base model: losses, hits, likeliest tokens and features, all from one forward pass.

Shapes: n rows, B rows of one pass, T = width of the rows, S = T - 1 predictions, P those of one pass that are within a
row's length, C and Q some of these, V vocabulary, D hidden size. Prediction s is of the token at s + 1.

No pass makes the logits of all its predictions: that takes hundreds of megabytes, and to get them from the system takes
a CPU as long as the logits. A model that cannot be taken apart is the exception. (`replay_service.language.head`)
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from replay_service.language.head import chunked_logits, hidden_losses
from replay_service.language.losses import position_losses, predicted
from replay_service.language.model import autocast, best_device, load_model, prepare_to_score
from replay_service.language.model_parts import split_model
from replay_service.language.packing import MIN_LENGTH
from replay_service.language.precision import Precision
from replay_service.language.trial import check_model

LEAST_LOGPROB: Final = -1e4
"""What stands in `topk_logprobs` where nothing is predicted, and the least that stands there at all. It is a finite
float16, and its exponential is zero, so that a term `p * log p` of it is zero and not NaN."""

_LOGITS_AT_ONCE: Final = 1 << 20
"""How many are taken to float32 together: 4 MiB of them."""

_LOGITS_OF_A_CHUNK: Final = 1 << 24
"""How many are computed together where whole logits are needed."""

_BLOCK: Final = 64
"""Logits of which the greatest is found first in a search for the likeliest tokens."""


class Scores(NamedTuple):
    """What the base model says of n rows, in their order; what was not asked for is None."""

    base_loss: NDArray[np.float32]
    """float32 [n], nats per predicted token."""
    correct: NDArray[np.bool_]
    """bool [n, T]: bit t says that the argmax predicted token t; False at 0 and beyond the row's length."""
    token_nats: NDArray[np.float32] | None
    """float32 [n, S], nats of each prediction; zero where nothing is predicted."""
    topk_ids: NDArray[np.int32] | None
    """int32 [n, S, k], the likeliest tokens of each prediction, the likeliest first; zero where nothing is predicted.
    Equally likely ones, which bfloat16 logits have, stand in any order."""
    topk_logprobs: NDArray[np.float16] | None
    """float16 [n, S, k], their natural log-probabilities; `LEAST_LOGPROB` where nothing is predicted."""
    feature: NDArray[np.float32] | None
    """float32 [n, D], the mean of the last hidden state, after the final norm, over the row's real tokens."""


class RowScorer:
    """Holds the base model and scores rows with it.

    Args:
        model: a local folder or a hub name.
        precision: the arithmetic of the forward pass; losses are float32 in either.
        batch_size: most rows of one forward pass.
        device: by default a GPU if there is one.
        topk: how many of the likeliest tokens to keep of each prediction; 0 for none.
        features: whether to pool the last hidden state.
        token_losses: whether to give the loss of each prediction.
        seq_len: most tokens of a row to score, which the model is tried with.

    Attributes:
        num_logits: width of the head; the ids of the likeliest tokens lie below it.

    Raises:
        CorpusError: when no model can be loaded, or it is not causal or does not take such rows.
        ValueError: when `topk` or `batch_size` is out of range.
    """

    def __init__(
        self,
        model: str,
        precision: Precision,
        *,
        batch_size: int,
        device: torch.device | None = None,
        topk: int = 0,
        features: bool = False,
        token_losses: bool = False,
        seq_len: int = MIN_LENGTH,
    ) -> None:
        self._device = device or best_device()
        self._model = prepare_to_score(load_model(model), precision).to(self._device)
        self._precision = precision
        self._batch_size = batch_size
        self._topk, self._features, self._token_losses = topk, features, token_losses
        with autocast(precision, self._device):
            check_model(self._model, seq_len)
            self._parts = split_model(self._model)
        self.num_logits, self._hidden_size = self._model.get_output_embeddings().weight.shape
        if not 0 <= topk <= self.num_logits:
            raise ValueError(f"topk {topk} is not between 0 and the model's {self.num_logits} tokens")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        # Where the likeliest tokens are asked for, whole logits of some predictions are needed.
        weight = self._model.get_output_embeddings().weight
        self._memory = weight.new_empty(max(1, _LOGITS_OF_A_CHUNK // self.num_logits) * self.num_logits if topk else 0)
        if features:
            self._model.base_model.register_forward_hook(self._keep_hidden)

    def score(
        self,
        input_ids: NDArray[np.integer[Any]],
        length: NDArray[np.integer[Any]],
        on_rows: Callable[[int], object] = lambda _: None,
    ) -> Scores:
        """Score any number of rows.

        Rows of like length share a forward pass, which is as wide as the longest of them: that changes nothing but
        rounding, since a causal model does not look ahead.

        Args:
            input_ids: any integer type [n, T]; what lies beyond a row's length must be token ids, and means nothing.
            length: any integer type [n], real tokens of each row.
            on_rows: called after each forward pass with the number of rows that it scored.

        Raises:
            ValueError: when a length is below 2 or above T.
        """
        _check(input_ids, length)
        scores = self._unscored(*input_ids.shape)
        longest_first = np.argsort(-length.astype(np.int64), kind="stable")
        for first in range(0, len(length), self._batch_size):
            index = longest_first[first : first + self._batch_size]
            self._score_batch(input_ids[index, : length[index[0]]], length[index], index, scores)
            on_rows(len(index))
        return scores

    def entropy(self, input_ids: NDArray[np.integer[Any]], length: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """What the base model itself expects its loss to be: the mean entropy of its predictions of each row.

        A forward pass of its own, a row at a time: it is for a few rows.

        Args:
            input_ids: any integer type [n, T].
            length: any integer type [n], real tokens of each row.

        Returns:
            float32 [n], nats per predicted token.

        Raises:
            ValueError: when a length is below 2 or above T.
        """
        _check(input_ids, length)
        rows = [ids_T[:end].astype(np.int64) for ids_T, end in zip(input_ids, length.tolist(), strict=True)]
        return np.array([self._entropy_of(torch.from_numpy(row).to(self._device)) for row in rows], dtype=np.float32)

    def _entropy_of(self, ids_T: Tensor) -> float:
        with torch.inference_mode(), autocast(self._precision, self._device):
            logits_SV = self._model(input_ids=ids_T[None], use_cache=False).logits[0, :-1]
            some = logits_SV.split(max(1, _LOGITS_AT_ONCE // logits_SV.shape[1]))
            log_p = (each_QV.float().log_softmax(dim=1) for each_QV in some)
            nats = sum(float(-(each_QV.exp() * each_QV).sum()) for each_QV in log_p)
        return nats / len(logits_SV)

    def _unscored(self, num_rows: int, width: int) -> Scores:
        num_predictions = max(0, width - 1)
        of_topk = (num_rows, num_predictions, self._topk)
        return Scores(
            base_loss=np.zeros(num_rows, dtype=np.float32),
            correct=np.zeros((num_rows, width), dtype=np.bool_),
            token_nats=np.zeros((num_rows, num_predictions), dtype=np.float32) if self._token_losses else None,
            topk_ids=np.zeros(of_topk, dtype=np.int32) if self._topk else None,
            topk_logprobs=np.full(of_topk, LEAST_LOGPROB, dtype=np.float16) if self._topk else None,
            feature=np.zeros((num_rows, self._hidden_size), dtype=np.float32) if self._features else None,
        )

    def _score_batch(
        self,
        input_ids: NDArray[np.integer[Any]],
        length: NDArray[np.integer[Any]],
        index: NDArray[np.int64],
        scores: Scores,
    ) -> None:
        """One forward pass over rows that are as wide as the longest; writes what it gives at `index`."""
        ids_BT = torch.from_numpy(input_ids.astype(np.int64)).to(self._device)
        length_B = torch.from_numpy(length.astype(np.int64)).to(self._device)
        with torch.inference_mode():
            mask_BS = predicted(ids_BT, length_B)
            found = self._found(ids_BT, ids_BT[:, 1:][mask_BS], mask_BS)
            found.write(scores, index, mask_BS)
            if scores.feature is not None:
                scores.feature[index] = self._pooled(length).cpu().numpy()

    def _found(self, ids_BT: Tensor, target_P: Tensor, mask_BS: Tensor) -> "_Found":
        with autocast(self._precision, self._device):
            if self._parts is None:
                logits_BTV = self._model(input_ids=ids_BT, use_cache=False).logits
                return _found_in(_real_logits(logits_BTV, mask_BS), target_P, self._topk)
            hidden_BTD = self._parts.hidden(ids_BT)
        head = self._parts.head
        hidden_PD = hidden_BTD[:, :-1][mask_BS].to(head.weight.dtype)
        if self._topk:
            return _found_in(chunked_logits(hidden_PD, head, self._memory), target_P, self._topk)
        losses = hidden_losses(hidden_PD, head.weight, head.bias, target_P)
        return _Found(losses.nll_P, losses.correct_P, None, None)

    def _keep_hidden(self, _module: Any, _arguments: Any, output: Any) -> None:
        self._hidden_BTD = output[0]

    def _pooled(self, length: NDArray[np.integer[Any]]) -> Tensor:
        rows = zip(self._hidden_BTD, length.tolist(), strict=True)
        return torch.stack([hidden_TD[:end].float().mean(dim=0) for hidden_TD, end in rows])


class _Found(NamedTuple):
    """What is known of the P predictions of one forward pass, those of the first row first."""

    nll_P: Tensor
    correct_P: Tensor
    topk_ids_Pk: Tensor | None
    topk_logprobs_Pk: Tensor | None

    def write(self, scores: Scores, index: NDArray[np.int64], mask_BS: Tensor) -> None:
        """To the rows at `index` of the scores, of which `mask_BS` says what is predicted."""
        nll_BS = torch.zeros(mask_BS.shape, device=mask_BS.device)
        nll_BS[mask_BS] = self.nll_P
        scores.base_loss[index] = (nll_BS.sum(dim=1) / mask_BS.sum(dim=1)).cpu().numpy()
        row_P, place_P = (each.cpu().numpy() for each in mask_BS.nonzero(as_tuple=True))
        predictions = index[row_P], place_P
        scores.correct[:, 1:][predictions] = self.correct_P.cpu().numpy()
        for column, found in zip(
            (scores.token_nats, scores.topk_ids, scores.topk_logprobs),
            (self.nll_P, self.topk_ids_Pk, self.topk_logprobs_Pk),
            strict=True,
        ):
            if column is not None and found is not None:
                column[predictions] = found.cpu().numpy()


def _found_in(chunks_CV: Iterable[Tensor], target_P: Tensor, topk: int) -> _Found:
    """Of logits in chunks of any size; float32 logits of a whole chunk would not fit into a cache."""
    parts: list[_Found] = []
    scratch_QV: Tensor | None = None
    first = 0
    for logits_CV in chunks_CV:
        scratch_QV = _scratch(logits_CV) if scratch_QV is None else scratch_QV
        for start in range(0, len(logits_CV), len(scratch_QV)):
            some_QV = logits_CV[start : start + len(scratch_QV)]
            target_Q = target_P[first : first + len(some_QV)]
            parts.append(_found_at_once(scratch_QV[: len(some_QV)].copy_(some_QV), target_Q, topk))
            first += len(some_QV)
    nll, correct, topk_ids, topk_logprobs = zip(*parts, strict=True)
    if not topk:
        return _Found(torch.cat(nll), torch.cat(correct), None, None)
    return _Found(torch.cat(nll), torch.cat(correct), torch.cat(topk_ids), torch.cat(topk_logprobs))


def _found_at_once(logits_QV: Tensor, target_Q: Tensor, topk: int) -> _Found:
    """Of float32 logits, which are lost."""
    if not topk:
        losses = position_losses(logits_QV, target_Q, overwrite=True)
        return _Found(losses.nll_P, losses.correct_P, None, None)
    greatest_Qk, ids_Qk = likeliest(logits_QV, topk)
    losses = position_losses(logits_QV, target_Q, overwrite=True)
    logprobs_Qk = (greatest_Qk - losses.log_total_P[:, None]).clamp(min=LEAST_LOGPROB)
    return _Found(losses.nll_P, losses.correct_P, ids_Qk.int(), logprobs_Qk.half())


def _real_logits(logits_BTV: Tensor, mask_BS: Tensor) -> Iterator[Tensor]:
    """Those of each row that predict one of its tokens."""
    for logits_TV, num_predicted in zip(logits_BTV, mask_BS.sum(dim=1).tolist(), strict=True):
        yield logits_TV[:num_predicted]


def _scratch(like_CV: Tensor) -> Tensor:
    """Memory for float32 logits, to be used again and again: to ask the system for it costs as much as the sums."""
    vocab_size = like_CV.shape[1]
    return like_CV.new_empty(max(1, _LOGITS_AT_ONCE // vocab_size), vocab_size, dtype=torch.float32)


def likeliest(logits_PV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k greatest logits of each position and their ids, [P, k] each, the greatest first.

    They lie in the k blocks with the greatest maxima, and among what is left over at the end: finding those blocks
    first takes one look at each logit, and a fraction of the time of `Tensor.topk` on a CPU.
    """
    vocab_size = logits_PV.shape[1]
    num_blocks = vocab_size // _BLOCK
    if num_blocks <= k:
        greatest_Pk, ids_Pk = logits_PV.topk(k, dim=1)
        return greatest_Pk, ids_Pk
    rest = torch.arange(num_blocks * _BLOCK, vocab_size, device=logits_PV.device).expand(len(logits_PV), -1)
    within = torch.arange(_BLOCK, device=logits_PV.device)
    blocks_PNV = logits_PV[:, : num_blocks * _BLOCK].reshape(-1, num_blocks, _BLOCK)
    blocks_Pk = blocks_PNV.amax(dim=2).topk(k, dim=1).indices
    candidates = torch.cat([(blocks_Pk[:, :, None] * _BLOCK + within).flatten(1), rest], dim=1)
    greatest_Pk, place_Pk = logits_PV.gather(1, candidates).topk(k, dim=1)
    return greatest_Pk, candidates.gather(1, place_Pk)


def _check(input_ids: NDArray[np.integer[Any]], length: NDArray[np.integer[Any]]) -> None:
    if len(length) == 0:
        return
    least, most = int(length.min()), int(length.max())
    if least < MIN_LENGTH:
        raise ValueError(f"a row of {least} tokens predicts nothing; rows to score have at least {MIN_LENGTH}")
    if most > input_ids.shape[1]:
        raise ValueError(f"a length of {most} is beyond the {input_ids.shape[1]} tokens of a row")
