"""The ranks of a loop of plain PyTorch, in processes of their own; see test_ranks.py."""

from typing import Any

import torch

from replay_trainer.client import ReplayClient
from replay_trainer.errors import InvalidTraining
from replay_trainer.plain import Rehearsal

SETTINGS: dict[str, Any] = {
    "global_batch_size": 5,
    "injection_ratio": "0.5",
    "injection_mode": "add",
    "policy": "uniform",
}


def first_steps(url: str, store: str, rank: int, runs: dict[str, tuple[int, int]]) -> list[str]:
    """What mixing the first two steps of each run says, given the rows of both ranks; empty where it goes well."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        with ReplayClient(url) as client:
            return [_said(client, run, rank, num_rows[rank]) for run, num_rows in runs.items()]
    finally:
        torch.distributed.destroy_process_group()


def _said(client: ReplayClient, run: str, rank: int, num_rows: int) -> str:
    client.ensure_run(run, "pretraining", SETTINGS)
    ids = torch.ones(num_rows, 8, dtype=torch.int64)
    with Rehearsal(client, run).open(rank, 2, num_steps=2) as loop:
        try:
            for step in range(2):
                loop.mix(step, {"input_ids": ids, "labels": ids})
        except InvalidTraining as error:
            return str(error)
    return ""
