"""The loops of accelerate and Lightning with rehearsal, alone or as the processes that `torchrun` starts.

    torchrun --nproc-per-node 2 -m tests.trainer.loops URL MODEL FOLDER

Each accumulates two micro-batches a step, whose last step of an epoch has only one. Each rank writes what it saw, and
its weights.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import lightning
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import AutoModelForCausalLM

from replay_trainer.accelerated import AcceleratedRehearsal
from replay_trainer.batches.added import Added
from replay_trainer.batches.apart import ApartInputs
from replay_trainer.client import ReplayClient
from replay_trainer.lightning import RehearsalCallback
from replay_trainer.plain import Rehearsal
from tests.trainer.alone import Part

GLOBAL_BATCH_SIZE = 4
NUM_PARTS = 2
NUM_ROWS = 10
"""Of an epoch: two steps of four rows, and one of two."""
STEPS_OF_EPOCH = 3
PARTS_OF_EPOCH = 5
NUM_EPOCHS = 2
LEARNING_RATE = 0.05
SETTINGS: dict[str, Any] = {
    "global_batch_size": GLOBAL_BATCH_SIZE,
    "injection_ratio": "0.4",
    "injection_mode": "add",
    "policy": "uniform",
}


@dataclass(slots=True)
class Seen:
    """What one rank rehearsed in each step, its micro-batches and their losses, and the figures of each step."""

    samples: dict[int, list[int]] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    figures: list[dict[str, float]] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    def note(self, batch: Added, loss: Tensor) -> None:
        self.parts.append(Part.of(batch))
        self.samples.setdefault(self.parts[-1].step, []).extend(batch.rehearsed.sample_id.tolist())
        self.losses.append(float(loss.detach()))


def rows() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 250, (NUM_ROWS, 10), generator=generator)
    return [{"input_ids": row, "labels": torch.cat([torch.full((2,), -100), row[2:]])} for row in ids]


def model_in(folder: str | Path) -> nn.Module:
    torch.manual_seed(0)
    found: nn.Module = AutoModelForCausalLM.from_pretrained(folder)
    return found


def optimizer_of(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """One with a state, which a checkpoint must hold, and whose steps are proportional to the gradients."""
    return torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)


def accelerate_loop(
    client: ReplayClient,
    run: str,
    folder: str | Path,
    *,
    learning_rate: float = LEARNING_RATE,
    precision: str = "no",
    apart: bool = False,
    save_after: int | None = None,
    save_to: Path | None = None,
    load_from: Path | None = None,
) -> tuple[Seen, nn.Module]:
    """Train with accelerate for two epochs, with a checkpoint after so many micro-batches, perhaps from one."""
    AcceleratorState._reset_state()  # of an earlier loop in this process
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=NUM_PARTS, mixed_precision=precision)
    model = model_in(folder)
    optimizer = optimizer_of(model, learning_rate)
    size = GLOBAL_BATCH_SIZE // (NUM_PARTS * accelerator.num_processes)
    model, optimizer, batches = accelerator.prepare(model, optimizer, DataLoader(rows(), batch_size=size))  # type: ignore[arg-type]
    seen, num_steps = Seen(), NUM_EPOCHS * STEPS_OF_EPOCH
    with AcceleratedRehearsal(accelerator, Rehearsal(client, run), num_steps=num_steps, model=model) as rehearsing:
        if load_from is not None:
            accelerator.load_state(str(load_from))
        first_epoch, num_taken = divmod(rehearsing.next_step, STEPS_OF_EPOCH)
        rest = accelerator.skip_first_batches(batches, NUM_PARTS * num_taken)
        for epoch in range(first_epoch, NUM_EPOCHS):
            for inputs in rest if epoch == first_epoch else batches:
                with accelerator.accumulate(model):
                    batch = rehearsing.mix(inputs, apart=apart)
                    output, of_rehearsed = model(**batch.inputs), None
                    if isinstance(batch, ApartInputs) and batch.is_rehearsed:
                        of_rehearsed = model(**batch.rehearsed_inputs)
                    loss = rehearsing.loss(batch, output, of_rehearsed)
                    seen.note(batch, loss)
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
                if accelerator.sync_gradients:
                    seen.figures.append(rehearsing.figures())
                if len(seen.losses) == save_after and save_to is not None:
                    accelerator.save_state(str(save_to))
    return seen, accelerator.unwrap_model(model)


class Tuned(lightning.LightningModule):
    def __init__(self, folder: str | Path, learning_rate: float, seen: Seen, apart: bool = False) -> None:
        super().__init__()
        self.model, self.learning_rate, self.seen, self.apart = model_in(folder), learning_rate, seen, apart

    def training_step(self, inputs: dict[str, Tensor], batch_idx: int) -> Tensor:
        rehearsing: Any = self.rehearsing
        batch = rehearsing.mix(inputs, apart=self.apart)
        output, of_rehearsed = self.model(**batch.inputs), None
        if isinstance(batch, ApartInputs) and batch.is_rehearsed:
            of_rehearsed = self.model(**batch.rehearsed_inputs).logits
        loss: Tensor = rehearsing.loss(batch, output.loss, output.logits, of_rehearsed)
        self.seen.note(batch, loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optimizer_of(self.model, self.learning_rate)


def lightning_loop(
    client: ReplayClient,
    run: str,
    folder: str | Path,
    *,
    learning_rate: float = LEARNING_RATE,
    precision: Any = "32-true",
    apart: bool = False,
    devices: int = 1,
    save_after: int | None = None,
    save_to: Path | None = None,
    load_from: Path | None = None,
) -> tuple[Seen, nn.Module]:
    """Train with Lightning likewise."""
    seen = Seen()
    module = Tuned(folder, learning_rate, seen, apart)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=NUM_EPOCHS,
        accumulate_grad_batches=NUM_PARTS,
        precision=precision,
        callbacks=[RehearsalCallback(Rehearsal(client, run)), _Saver(seen, save_after, save_to)],
        logger=_Kept(seen),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    # Lightning's own sampler would shuffle the rows of several processes.
    sampler = DistributedSampler(rows(), devices, int(os.environ.get("RANK", "0")), shuffle=False)  # type: ignore[arg-type]
    size = GLOBAL_BATCH_SIZE // (NUM_PARTS * devices)
    # Of a plain DataLoader Lightning keeps no place within an epoch; a stateful one has none at an epoch's last batch.
    kind = DataLoader if save_after == PARTS_OF_EPOCH else StatefulDataLoader
    batches = kind(rows(), batch_size=size, sampler=sampler)  # type: ignore[arg-type]
    trainer.fit(module, batches, ckpt_path=None if load_from is None else str(load_from))
    return seen, module.model


class _Saver(lightning.Callback):
    """Writes a checkpoint after so many micro-batches."""

    def __init__(self, seen: "Seen", num_parts: int | None, path: Path | None) -> None:
        self._seen, self._num_parts, self._path = seen, num_parts, path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if len(self._seen.losses) == self._num_parts and self._path is not None:
            trainer.save_checkpoint(self._path)


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
        found = {
            name: accelerate_loop(client, name, model, apart=apart)
            for name, apart in (("accelerate-mixed", False), ("accelerate-apart", True))
        }
        for name, apart in (("lightning-mixed", False), ("lightning-apart", True)):
            found[name] = lightning_loop(client, name, model, devices=2, apart=apart)
    rank = torch.distributed.get_rank()
    for name, (seen, tuned) in found.items():
        # Of this module as a program nobody can load a class.
        plain = {each.name: getattr(seen, each.name) for each in fields(seen)}
        torch.save((plain, tuned.state_dict()), Path(folder) / f"{name}-{rank}.pt")
    # A process that ends while torch's threads are at work may be aborted.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
