"""Runs, rows and logits that tests of loops of plain PyTorch share."""

from typing import Any

import torch

from replay_trainer.batches.rows import MixedInputs
from replay_trainer.client import ReplayClient
from replay_trainer.plain import Rehearsal, RehearsalLoop

SEQ_LEN = 12
VOCAB = 300
SETTINGS = {"global_batch_size": 4, "injection_ratio": "0.4", "injection_mode": "add", "policy": "uniform"}


def a_run(client: ReplayClient, run: str, **changes: Any) -> Rehearsal:
    client.ensure_run(run, "pretraining", {**SETTINGS, **changes})
    return Rehearsal(client, run)


def rows(num_rows: int = 4, width: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, VOCAB, (num_rows, width), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids.clone()}


def logits_for(batch: MixedInputs) -> torch.Tensor:
    return torch.randn(*batch.inputs["input_ids"].shape, VOCAB, generator=torch.Generator().manual_seed(1))


def ids_of(batches: list[MixedInputs]) -> list[int]:
    return [int(each) for batch in batches for each in batch.rehearsed.sample_id]


def train_on(loop: RehearsalLoop, step: int, inputs: dict[str, torch.Tensor], **part: int) -> MixedInputs:
    batch = loop.mix(step, inputs, **part)
    assert isinstance(batch, MixedInputs)
    loop.report(batch, batch.losses(logits_for(batch)))
    return batch
