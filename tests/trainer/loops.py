"""The loops of accelerate and Lightning with rehearsal, alone or as the processes that `torchrun` starts.

    torchrun --nproc-per-node 2 -m tests.trainer.loops URL MODEL FOLDER

Each accumulates two micro-batches a step, whose last step of an epoch has only one. Each rank writes what it saw.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler
from transformers import AutoModelForCausalLM

from replay_trainer.accelerated import AcceleratedRehearsal
from replay_trainer.batches.added import Added
from replay_trainer.client import ReplayClient
from replay_trainer.lightning import RehearsalCallback
from replay_trainer.plain import Rehearsal

GLOBAL_BATCH_SIZE = 4
NUM_PARTS = 2
NUM_ROWS = 10
"""Of an epoch: two steps of four rows, and one of two."""
STEPS_OF_EPOCH = 3
NUM_EPOCHS = 2
SETTINGS: dict[str, Any] = {
    "global_batch_size": GLOBAL_BATCH_SIZE,
    "injection_ratio": "0.4",
    "injection_mode": "add",
    "policy": "uniform",
}


@dataclass(slots=True)
class Seen:
    """What one rank rehearsed in each step, the loss of each micro-batch, and the figures of each step."""

    samples: dict[int, list[int]] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    figures: list[dict[str, float]] = field(default_factory=list)
    batches: list[dict[str, list[list[int]]]] = field(default_factory=list)

    def note(self, batch: Added, loss: Tensor) -> None:
        step = batch.rehearsed.only_step.step
        self.samples.setdefault(step, []).extend(batch.rehearsed.sample_id.tolist())
        self.losses.append(float(loss.detach()))
        self.batches.append({name: batch.inputs[name].tolist() for name in ("input_ids", "labels")})


def rows() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 250, (NUM_ROWS, 10), generator=generator)
    return [{"input_ids": row, "labels": torch.cat([torch.full((2,), -100), row[2:]])} for row in ids]


def loader(world_size: int, sampler: Any = None) -> DataLoader[dict[str, Tensor]]:
    size = GLOBAL_BATCH_SIZE // (NUM_PARTS * world_size)
    return DataLoader(rows(), batch_size=size, sampler=sampler)  # type: ignore[arg-type]


def model_in(folder: str | Path) -> nn.Module:
    torch.manual_seed(0)
    found: nn.Module = AutoModelForCausalLM.from_pretrained(folder)
    return found


def accelerate_loop(
    client: ReplayClient,
    run: str,
    folder: str | Path,
    *,
    learning_rate: float = 1e-2,
    precision: str = "no",
    stop_after: int | None = None,
    save_to: Path | None = None,
    load_from: Path | None = None,
) -> tuple[Seen, nn.Module]:
    """Train with accelerate for two epochs, or stop after so many steps with a checkpoint, or go on from one."""
    AcceleratorState._reset_state()  # of an earlier loop in this process
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=NUM_PARTS, mixed_precision=precision)
    model = model_in(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    model, optimizer, batches = accelerator.prepare(model, optimizer, loader(accelerator.num_processes))
    seen, num_steps = Seen(), 0
    rehearsing = AcceleratedRehearsal(
        accelerator, Rehearsal(client, run), num_steps=NUM_EPOCHS * STEPS_OF_EPOCH, model=model
    )
    with rehearsing:
        if load_from is not None:
            accelerator.load_state(str(load_from))
        for _ in range(NUM_EPOCHS if load_from is None else 1):
            for inputs in batches:
                with accelerator.accumulate(model):
                    batch = rehearsing.mix(inputs)
                    loss = rehearsing.loss(batch, model(**batch.inputs))
                    seen.note(batch, loss)
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
                if accelerator.sync_gradients:
                    num_steps += 1
                    seen.figures.append(rehearsing.figures())
            if num_steps == stop_after:
                accelerator.save_state(str(save_to))
                rehearsing.loop.close()
                return seen, accelerator.unwrap_model(model)
    return seen, accelerator.unwrap_model(model)


class Tuned(lightning.LightningModule):
    def __init__(self, folder: str | Path, learning_rate: float, seen: Seen) -> None:
        super().__init__()
        self.model, self.learning_rate, self.seen = model_in(folder), learning_rate, seen

    def training_step(self, inputs: dict[str, Tensor], batch_idx: int) -> Tensor:
        batch = self.rehearsing.mix(inputs)  # type: ignore[operator,union-attr]
        output = self.model(**batch.inputs)
        loss: Tensor = self.rehearsing.loss(batch, output.loss, output.logits)  # type: ignore[operator,union-attr]
        self.seen.note(batch, loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=self.learning_rate)


def lightning_loop(
    client: ReplayClient,
    run: str,
    folder: str | Path,
    *,
    learning_rate: float = 1e-2,
    precision: Any = "32-true",
    devices: int = 1,
    save_to: Path | None = None,
    load_from: Path | None = None,
    num_epochs: int = NUM_EPOCHS,
) -> tuple[Seen, nn.Module]:
    """Train with Lightning likewise; `save_to` holds a checkpoint of its end."""
    seen = Seen()
    module = Tuned(folder, learning_rate, seen)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=num_epochs,
        accumulate_grad_batches=NUM_PARTS,
        precision=precision,
        callbacks=[RehearsalCallback(Rehearsal(client, run))],
        logger=_Kept(seen),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    # Lightning's own sampler would shuffle the rows of several processes.
    sampler = DistributedSampler(rows(), devices, int(os.environ.get("RANK", "0")), shuffle=False)  # type: ignore[arg-type]
    trainer.fit(module, loader(devices, sampler), ckpt_path=None if load_from is None else str(load_from))
    if save_to is not None:
        trainer.save_checkpoint(save_to)
    return seen, module.model


class _Kept(Logger):
    """Keeps the figures of each step."""

    name, version = "kept", 0

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self._seen = seen

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self._seen.figures.append(dict(metrics))

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


LOOPS: dict[str, Callable[..., tuple[Seen, nn.Module]]] = {"accelerate": accelerate_loop, "lightning": lightning_loop}


def main(url: str, model: str, folder: str) -> None:
    torch.set_num_threads(1)
    with ReplayClient(url) as client:
        found = {"accelerate": accelerate_loop(client, "accelerate-together", model, learning_rate=0.0)[0]}
        found["lightning"] = lightning_loop(client, "lightning-together", model, learning_rate=0.0, devices=2)[0]
    rank = torch.distributed.get_rank()
    for name, seen in found.items():
        (Path(folder) / f"{name}-{rank}.json").write_text(json.dumps(asdict(seen)))


if __name__ == "__main__":
    main(*sys.argv[1:])
