"""trl's SFTTrainer with rehearsal, alone or as the processes that `torchrun` starts; see test_trl.py.

    torchrun --nproc-per-node 2 -m tests.trainer.trl_loops URL MODEL FOLDER

Each rank writes the samples of each step, the losses that were logged, and what became of its weights.
"""

import json
import os
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from replay_trainer.batches.added import Added
from replay_trainer.client import ReplayClient
from replay_trainer.hf import RehearsalMixin
from replay_trainer.plain import Rehearsal

SEQ_LEN = 12
CHAT = (
    "{% for message in messages %}{{ message.role }}: {% generation %}{{ message.content }}{% endgeneration %} "
    "{% endfor %}"
)


class Watched(RehearsalMixin, SFTTrainer):  # type: ignore[misc]
    """Keeps the samples of each step."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.target: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.rehearsed: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.num_rows = 0
        """Of the dataset; a flat batch is made of several."""

    def get_batch_samples(self, *args: Any) -> Any:
        batches, num_items = super().get_batch_samples(*args)
        self.num_rows += len(batches) * self.args.per_device_train_batch_size
        return batches, num_items

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **options: Any) -> Any:
        assert not return_outputs
        if model.training:
            mixed = inputs["mixed_with_rehearsal"]
            self.target.setdefault(self.state.global_step, []).extend(samples_of(inputs))
            self.rehearsed.setdefault(self.state.global_step, []).extend(rehearsed_of(mixed))
        return super().compute_loss(model, inputs, return_outputs, **options)


def samples_of(inputs: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """The token ids and labels of each sample of a batch, without padding."""
    for row, (ids, labels) in enumerate(zip(inputs["input_ids"], inputs["labels"], strict=True)):
        if "position_ids" in inputs:
            first = [*(inputs["position_ids"][row] == 0).nonzero().flatten().tolist(), len(ids)]
            yield from ((ids[a:b], labels[a:b]) for a, b in pairwise(first))
        else:
            length = int(inputs["attention_mask"][row].sum())
            yield ids[:length], labels[:length]


def rehearsed_of(mixed: Added) -> Iterator[tuple[Tensor, Tensor]]:
    for ids, length in zip(mixed.rehearsed.input_ids, mixed.rehearsed.length, strict=True):
        tokens = torch.from_numpy(ids[:length].astype("int64"))
        yield tokens, tokens


def reference(model: nn.Module, samples: list[tuple[Tensor, Tensor]]) -> float:
    """The mean over all predictions that count, of samples that are run one by one."""
    nats, num = 0.0, 0
    for ids, labels in samples:
        counted = labels[1:]
        if not (counted != -100).any():
            continue
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        nats += float(nn.functional.cross_entropy(logits, counted, reduction="sum"))
        num += int((counted != -100).sum())
    return nats / num


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


def trainer_of(client: ReplayClient, kind: str, model: Path, folder: Path, **changes: Any) -> Watched:
    rows, options = KINDS[kind]
    settings = {"injection_ratio": "0.4", "injection_mode": "add", "policy": "uniform"}
    run = f"trl-{kind}-{len(changes)}"
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


TOGETHER = {"packed": {"learning_rate": 0.0}, "padded": {"learning_rate": 1e-2}}
"""What several processes train on."""


def main(url: str, model: str, folder: str) -> None:
    torch.set_num_threads(1)
    for kind, changes in TOGETHER.items():
        with ReplayClient(url) as client:
            trainer = trainer_of(
                client, kind, Path(model), Path(folder) / kind, per_device_train_batch_size=1, **changes
            )
            trainer.train()
        found = {
            "target": [[[e.tolist() for e in pair] for pair in each] for each in trainer.target.values()],
            "rehearsed": [[[e.tolist() for e in pair] for pair in each] for each in trainer.rehearsed.values()],
            "num_rows": trainer.num_rows,
            "losses": [each["loss"] for each in trainer.state.log_history if "loss" in each],
            "weights": float(sum(each.double().abs().sum() for each in trainer.model.parameters())),
        }
        (Path(folder) / f"{kind}-{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
