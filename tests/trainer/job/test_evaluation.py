from pathlib import Path

import numpy as np
import pytest
import torch

from replay_service.language.model import load_model
from replay_service.language.packing import PackedRows
from trainer.job.evaluation import HeldOut, forgetting


def rows(num_rows: int, seq_len: int = 10) -> PackedRows:
    rng = np.random.default_rng(num_rows)
    length = np.full(num_rows, seq_len, dtype=np.int32)
    length[-1] = 4
    return PackedRows(rng.integers(0, 250, (num_rows, seq_len)).astype(np.uint16), length)


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
