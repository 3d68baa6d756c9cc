"""trl's SFTTrainer with rehearsal, alone or as the processes that `torchrun` starts; see test_trl.py.

    torchrun --nproc-per-node 2 -m tests.trainer.trl_loops URL MODEL FOLDER

Each rank writes the samples of each step, the losses that were logged, and what became of its weights.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from replay_trainer.client import ReplayClient
from replay_trainer.hf import RehearsalMixin
from replay_trainer.plain import Rehearsal
from tests.trainer.alone import Part, rehearsed_of, samples_of

SEQ_LEN = 12
CHAT = (
    "{% for message in messages %}{{ message.role }}: {% generation %}{{ message.content }}{% endgeneration %} "
    "{% endfor %}"
)


class Watched(RehearsalMixin, SFTTrainer):  # type: ignore[misc]
    """Keeps the samples of each step."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.parts: list[Part] = []
        self.num_rows = 0
        """Of the dataset; a flat batch is made of several."""

    def get_batch_samples(self, *args: Any) -> Any:
        batches, num_items = super().get_batch_samples(*args)
        self.num_rows += len(batches) * self.args.per_device_train_batch_size
        return batches, num_items

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **options: Any) -> Any:
        assert not return_outputs
        if model.training:
            rehearsed = rehearsed_of(inputs["mixed_with_rehearsal"].rehearsed)
            self.parts.append(Part(self.state.global_step, list(samples_of(inputs)), rehearsed))
        return super().compute_loss(model, inputs, return_outputs, **options)


def texts() -> Dataset:
    return Dataset.from_list(
        [{"text": f"the cat of number {i} sat on the mat" + " again" * (i % 3)} for i in range(24)]
    )


def completions() -> Dataset:
    return Dataset.from_list(
        [{"prompt": f"number {i}", "completion": " sat on the mat" * (1 + i % 3)} for i in range(24)]
    )


def conversations() -> Dataset:
    return Dataset.from_list(
        [
            {"messages": [{"role": "user", "content": f"cat {i}"}, {"role": "assistant", "content": "on the mat"}]}
            for i in range(24)
        ]
    )


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "padded": (texts, {}),
    "packed": (texts, {"packing": True, "max_length": 40}),
    "wrapped": (texts, {"packing": True, "packing_strategy": "wrapped", "max_length": 40}),
    "padding-free": (texts, {"padding_free": True, "max_length": None}),
    "completion-only": (completions, {"completion_only_loss": True}),
    "assistant-only": (conversations, {"assistant_only_loss": True}),
    "peft": (texts, {}),
}


def trainer_of(client: ReplayClient, run: str, kind: str, model: Path, folder: Path, **changes: Any) -> Watched:
    rows, options = KINDS[kind]
    settings = {"injection_ratio": "0.4", "injection_mode": "add", "policy": "uniform"}
    client.ensure_run(run, "pretraining", {**settings, "global_batch_size": 4})
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = CHAT
    values = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "learning_rate": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return Watched(
        rehearsal=Rehearsal(client, run),
        model=AutoModelForCausalLM.from_pretrained(model),
        args=SFTConfig(**{**values, **options, **changes}),
        train_dataset=rows(),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules="all-linear") if kind == "peft" else None,
    )


def losses_of(trainer: Watched) -> list[float]:
    return [each["loss"] for each in trainer.state.log_history if "loss" in each]


LEARNS: dict[str, Any] = {
    "learning_rate": 0.1,
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
}
"""Steps that are proportional to the gradients."""
TOGETHER: dict[str, dict[str, Any]] = {"packed": {}, "padded": LEARNS}
"""What several processes train on."""


def main(url: str, model: str, folder: str) -> None:
    torch.set_num_threads(1)
    for kind, changes in TOGETHER.items():
        with ReplayClient(url) as client:
            trainer = trainer_of(
                client,
                f"{kind}-together",
                kind,
                Path(model),
                Path(folder) / kind,
                per_device_train_batch_size=1,
                **changes,
            )
            trainer.train()
        found = {
            "parts": trainer.parts,
            "num_rows": trainer.num_rows,
            "losses": losses_of(trainer),
            "weights": trainer.model.state_dict(),
        }
        torch.save(found, Path(folder) / f"{kind}-{os.environ['RANK']}.pt")
    # A process that ends while torch's threads are at work may be aborted.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
