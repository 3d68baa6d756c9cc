from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from replay_service.corpus.ingest.scored import predicted_rows
from replay_service.language.scoring import RowScorer
from replay_service.wire.columns import list_rows, wide_list


def test_ids_of_a_head_that_is_wider_than_the_tokenizer_are_stored_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=320, **sizes)).save_pretrained(tmp_path)
    scorer = RowScorer(str(tmp_path), "float32", batch_size=4, device=torch.device("cpu"), topk=320)
    ids = np.random.default_rng(0).integers(0, 256, (2, 8)).astype(np.uint8)
    rows = predicted_rows(scorer, pa.table({"input_ids": wide_list(ids), "length": np.full(2, 8, dtype=np.int32)}))
    found = list_rows(rows["topk_ids"].combine_chunks())
    assert found.dtype == np.uint16
    assert (np.sort(found, axis=2) == np.arange(320)).all()
