from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from replay_service.corpus.ingest.scored import predicted_rows
from replay_service.language.scoring import RowScorer
from replay_service.wire.columns import list_rows, wide_list


def numbered(ids: np.ndarray, first: int = 0) -> pa.Table:
    """Whole rows, as they stand in a part of a shard."""
    length = np.full(len(ids), ids.shape[1], dtype=np.int32)
    return pa.table({"row": np.arange(first, first + len(ids)), "input_ids": wide_list(ids), "length": length})


def test_one_row_in_32_has_an_entropy_wherever_the_parts_of_its_shard_begin(tiny_model: Path) -> None:
    scorer = RowScorer(str(tiny_model), "float32", batch_size=64, device=torch.device("cpu"))
    ids = np.random.default_rng(0).integers(0, 300, (70, 8)).astype(np.uint16)
    whole = predicted_rows(scorer, numbered(ids))["base_entropy"].to_numpy()
    assert np.flatnonzero(np.isfinite(whole)).tolist() == [0, 32, 64]
    parts = [predicted_rows(scorer, numbered(ids[first : first + 35], first)) for first in (0, 35)]
    assert np.allclose(np.concatenate([each["base_entropy"].to_numpy() for each in parts]), whole, equal_nan=True)


def test_ids_of_a_head_that_is_wider_than_the_tokenizer_are_stored_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=320, **sizes)).save_pretrained(tmp_path)
    scorer = RowScorer(str(tmp_path), "float32", batch_size=4, device=torch.device("cpu"), topk=320)
    ids = np.random.default_rng(0).integers(0, 256, (2, 8)).astype(np.uint8)
    rows = predicted_rows(scorer, numbered(ids))
    found = list_rows(rows["topk_ids"].combine_chunks())
    assert found.dtype == np.uint16
    assert (np.sort(found, axis=2) == np.arange(320)).all()
