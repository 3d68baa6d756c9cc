"""Small data sets, arguments and runs that tests of `transformers.Trainer` share."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from replay_trainer.client import ReplayClient
from replay_trainer.plain import Rehearsal

SEQ_LEN = 12


def dataset(num_rows: int = 24, width: int = 10) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1, 250, (num_rows, width), generator=generator).tolist()
    # A column that no model takes, and a prompt of two tokens that do not count.
    return [{"input_ids": row, "labels": [-100, -100, *row[2:]], "source": i} for i, row in enumerate(rows)]


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    values = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**{**values, **changes})


def a_run(client: ReplayClient, run: str, weight: float = 1.0, **changes: Any) -> Rehearsal:
    settings = {"global_batch_size": 4, "injection_ratio": "0.4", "injection_mode": "add", "policy": "uniform"}
    client.ensure_run(run, "pretraining", {**settings, **changes})
    return Rehearsal(client, run, rehearsal_weight=weight)
