from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from replay_service.language.model import load_model
from replay_service.language.tokenizer import encode, load_tokenizer
from replay_trainer.batches.target import TrainingRows
from replay_trainer.config import DataConfig
from replay_trainer.job.evaluation import HeldOut, forgetting
from replay_trainer.job.feed import load_heldout


def rows(num_rows: int, seq_len: int = 10) -> TrainingRows:
    rng = np.random.default_rng(num_rows)
    length = np.full(num_rows, seq_len, dtype=np.int32)
    length[-1] = 4
    return TrainingRows(rng.integers(0, 250, (num_rows, seq_len)).astype(np.uint16), length)


def test_the_loss_of_a_domain_is_the_mean_over_its_tokens(tiny_model: Path) -> None:
    model, heldout = load_model(str(tiny_model)), HeldOut({"en": rows(5)})
    losses = heldout.losses(model, "float32", torch.device("cpu"), 0, 1, lambda sums: sums)
    ids, length = heldout.rows["en"].input_ids, heldout.rows["en"].length
    total, tokens = 0.0, 0
    for row in range(5):
        row_ids = torch.from_numpy(ids[row, : length[row]].astype(np.int64))[None]
        with torch.no_grad():
            loss = model(input_ids=row_ids, labels=row_ids).loss
        total += float(loss) * (length[row] - 1)
        tokens += length[row] - 1
    assert losses["en"] == pytest.approx(total / tokens, abs=1e-5)


def test_ranks_measure_their_shares(tiny_model: Path) -> None:
    model, heldout = load_model(str(tiny_model)), HeldOut({"en": rows(5), "fr": rows(1)})
    shares: list[torch.Tensor] = []

    def collect(sums: torch.Tensor) -> torch.Tensor:
        shares.append(sums.clone())
        return sums

    whole = heldout.losses(model, "float32", torch.device("cpu"), 0, 1, lambda sums: sums)
    for rank in range(2):
        with np.errstate(invalid="ignore"):
            heldout.losses(model, "float32", torch.device("cpu"), rank, 2, lambda sums: collect(sums) + 1e-12)
    together = sum(shares)
    assert float(together[0, 0] / together[0, 1]) == pytest.approx(whole["en"], abs=1e-6)


def test_forgetting_leaves_the_target_out() -> None:
    assert forgetting({"en": 3.5, "target": 1.0}, {"en": 3.0, "target": 2.0}) == {"en": 0.5}


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_of_heldout_examples_the_responses_count_alone(tmp_path: Path, tiny_model: Path, layout: str) -> None:
    asked, said = ["what sat on the mat", "et le chat"], ["a cat", "il est ici"]
    pq.write_table(pa.table({"ask": asked, "say": said}), tmp_path / "rows.parquet")
    rows = str(tmp_path / "rows.parquet")
    config = {"prompt_column": "ask", "response_column": "say", "layout": layout, "seq_len": 64}
    data = DataConfig.model_validate({"target": "other", "heldout_target": rows, **config})
    model, tokenizer = load_model(str(tiny_model)), load_tokenizer(str(tiny_model))
    heldout = load_heldout(data, tokenizer)
    found = heldout.losses(model, "float32", torch.device("cpu"), 0, 1, lambda sums: sums)
    nats = num_tokens = 0.0
    target = heldout.rows["target"]
    assert target.weight is not None
    for row, length, weight in zip(target.input_ids, target.length, target.weight, strict=True):
        ids = torch.from_numpy(row[:length].astype(np.int64))[None]
        labels = ids.masked_fill(torch.from_numpy(weight[:length] == 0)[None], -100)
        count = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            nats += float(model(input_ids=ids, labels=labels).loss) * count
        num_tokens += count
    # Responses, and the separator after each.
    assert num_tokens == sum(len(ids) + 1 for ids in encode(tokenizer, said))
    assert found == {"target": pytest.approx(nats / num_tokens, rel=1e-5)}
