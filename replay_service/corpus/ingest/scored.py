"""Scored rows: packed rows, and the columns that the base model adds to them."""

from typing import Any, Final

import numpy as np
import pyarrow as pa

from replay_service.classification.scoring import ClassScorer
from replay_service.errors import CorpusError
from replay_service.language.packing import id_dtype
from replay_service.language.scoring import RowScorer, Scores
from replay_service.wire.columns import list_rows, wide_binary, wide_list

ENTROPY_OF_ONE_IN: Final = 32
"""One row in so many is looked at twice: the second forward pass costs 3 % of the first ones."""


def predicted_rows(scorer: RowScorer, table: pa.Table) -> pa.Table:
    """Rows of tokens with base_loss, base_correct and what else the scorer gives.

    Some of them have a base_entropy (`RowScorer.entropy`), float32; in the others it is NaN.

    Raises:
        CorpusError: when a loss is not finite.
    """
    input_ids = list_rows(table["input_ids"].combine_chunks())
    length = table["length"].to_numpy()
    scores = scorer.score(input_ids, length)
    if not np.isfinite(scores.base_loss).all():
        raise CorpusError("the base model gives no finite loss for some rows; score with --precision float32")
    for name, column in _columns(scores, id_dtype(scorer.num_logits)).items():
        table = table.append_column(name, column)
    entropy = np.full(len(table), np.nan, dtype=np.float32)
    some = np.flatnonzero(table["row"].to_numpy() % ENTROPY_OF_ONE_IN == 0)
    entropy[some] = scorer.entropy(input_ids[some], length[some])
    return table.append_column("base_entropy", pa.array(entropy))


def classified_rows(scorer: ClassScorer, table: pa.Table) -> pa.Table:
    """Samples with base_loss and base_correct. A loss that is not finite stays: its sample is set aside later.

    Raises:
        CorpusError: when the model does not take the token ids.
    """
    is_text = "input_ids" in table.column_names
    content = list_rows(table["input_ids" if is_text else "inputs"].combine_chunks())
    length = table["length"].to_numpy() if is_text else None
    try:
        scores = scorer.score(content, table["label"].to_numpy(), length)
    except IndexError as error:
        raise CorpusError(f"the base model does not know some of the token ids: {error}; look at the shards") from error
    hit = wide_binary(scores.correct.astype(np.uint8)[:, None])
    return table.append_column("base_loss", pa.array(scores.base_loss)).append_column("base_correct", hit)


def _columns(scores: Scores, topk_dtype: "np.dtype[Any]") -> dict[str, pa.Array]:
    columns = {
        "base_loss": pa.array(scores.base_loss),
        "base_correct": wide_binary(np.packbits(scores.correct, axis=1, bitorder="little")),
    }
    if scores.topk_ids is not None and scores.topk_logprobs is not None:
        columns["topk_ids"] = wide_list(scores.topk_ids.astype(topk_dtype))
        columns["topk_logprobs"] = wide_list(scores.topk_logprobs)
    if scores.feature is not None:
        columns["feature"] = wide_list(scores.feature)
    return columns
