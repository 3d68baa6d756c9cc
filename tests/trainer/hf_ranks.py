"""The processes of a `transformers.Trainer` that rehearses, as `torchrun` starts them; see test_hf_ranks.py.

    torchrun --nproc-per-node 2 -m tests.trainer.hf_ranks URL MODEL FOLDER

Trains, then trains again from the checkpoint at its third step, then without padding, then with batches that the
processes split, then on rows so short that rehearsed ones take a forward pass of their own. Each rank writes what it
rehearsed into FOLDER.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DataCollatorWithFlattening, TrainingArguments

from replay_trainer.batches.apart import ApartInputs
from replay_trainer.client import ReplayClient
from replay_trainer.hf import RehearsalTrainer
from replay_trainer.plain import Rehearsal

NUM_STEPS = 6
RESUMED_AT = 3
GLOBAL_BATCH_SIZE = 4
SETTINGS: dict[str, Any] = {
    "global_batch_size": GLOBAL_BATCH_SIZE,
    "injection_ratio": "0.4",
    "injection_mode": "add",
    "policy": "mix_cd",
    "feedback": {"mode": "fenced", "lag": 2},
}


@dataclass(slots=True)
class Seen:
    """What one rank rehearsed in each step, and the loss of each step over all ranks."""

    samples: dict[int, list[int]] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    num_apart: int = 0
    """Micro-batches whose rehearsed rows took a forward pass of their own."""


class Watched(RehearsalTrainer):
    """Keeps what it rehearsed in each step."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.samples: dict[int, list[int]] = {}
        self.num_apart = 0

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Tensor:
        mixed = inputs.get("mixed_with_rehearsal")
        found = self.samples.setdefault(self.state.global_step, [])
        found.extend([] if mixed is None else mixed.rehearsed.sample_id.tolist())
        self.num_apart += isinstance(mixed, ApartInputs)
        loss: Tensor = super().compute_loss(model, inputs, *args, **options)
        return loss


def train(
    client: ReplayClient,
    run: str,
    model: Path,
    folder: Path,
    world_size: int,
    *,
    resume: bool,
    flat: bool = False,
    split: bool = False,
    short: bool = False,
) -> Seen:
    """Train as one of `world_size` processes, each of which accumulates two parts of its share of a step."""
    client.ensure_run(run, "pretraining", SETTINGS)
    trainer = Watched(
        rehearsal=Rehearsal(client, run),
        model=AutoModelForCausalLM.from_pretrained(model),
        args=arguments(folder, GLOBAL_BATCH_SIZE // (2 if split else 2 * world_size), split),
        train_dataset=dataset(3 if short else 10),
        data_collator=DataCollatorWithFlattening() if flat else None,
    )
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{RESUMED_AT}") if resume else None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Seen(trainer.samples, losses, trainer.num_apart)


def arguments(folder: Path, rows: int, split: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=2,
        accelerator_config={"split_batches": split},
        max_steps=NUM_STEPS,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="steps",
        save_steps=RESUMED_AT,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def dataset(width: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1, 250, (24, width), generator=generator).tolist()
    return [{"input_ids": row, "labels": [-100, -100, *row[2:]]} for row in rows]


def main(url: str, model: str, folder: str) -> None:
    torch.set_num_threads(1)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with ReplayClient(url) as client:
        for name in ("whole", "resumed", "flat", "split", "short"):
            run = "together" if name in ("whole", "resumed") else name
            found = train(
                client,
                run,
                Path(model),
                Path(folder) / run,
                world_size,
                resume=name == "resumed",
                flat=name == "flat",
                split=name == "split",
                short=name == "short",
            )
            (Path(folder) / f"{name}-{rank}.json").write_text(json.dumps(asdict(found)))
    # A process that ends while torch's threads are at work may be aborted.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
