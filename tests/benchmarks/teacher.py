"""What it costs a step that rehearsed rows learn from the base model: `python -m tests.benchmarks.teacher`.

README.md in this folder says what each column means.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from replay_service.testing import replay_service
from replay_trainer.client import ReplayClient
from replay_trainer.methods.teacher import Teacher
from replay_trainer.plain import Rehearsal, RehearsalLoop
from tests.benchmarks.ratios import as_table, measured, repeated

NUM_ROWS: Final = 19
"""Of a step, beside one that is rehearsed."""
RATIO: Final = "0.05"
SEQ_LEN: Final = 256
VOCAB_SIZE: Final = 2048
_DISTILLED: Final = {"rehearsal_loss": "distill", "rehearsal_weight": 3.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    wanted = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    ids = torch.randint(1, VOCAB_SIZE, (NUM_ROWS, SEQ_LEN))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    rows = []
    with (
        replay_service(seq_len=SEQ_LEN, vocab_size=VOCAB_SIZE, rows_per_domain=200, topk=8) as service,
        service.client() as client,
    ):
        for tuned, model in (("all weights", a_model()), ("LoRA", with_adapters(a_model()))):
            ways = dict(ways_of(client, model, tuned.partition(" ")[0].lower()))
            steps = [step_of(model, inputs, loop) for loop in ways.values()]
            # The first round warms up.
            taken = [each[1:] for each in repeated(1 + wanted.repeats, [lambda s=step: timed(s) for step in steps])]
            for name, own in zip(ways, taken, strict=True):
                rows.append([tuned, name, *measured(own, taken[1], "ms")])
    print(as_table(["tuned", "rehearsal", "step", "step, ratio (least-most)"], rows))


def a_model() -> Any:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def with_adapters(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))


def ways_of(client: ReplayClient, model: Any, tuned: str) -> Iterator[tuple[str, RehearsalLoop]]:
    """The loops of a run without rehearsal, and of one for each loss of rehearsed rows."""
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "none": ("0", {}),
        "cross-entropy": (RATIO, {}),
        "distilled, stored tokens": (RATIO, {**_DISTILLED, "teacher": "stored"}),
        "distilled, base model": (RATIO, {**_DISTILLED, "teacher": Teacher.of(model)}),
    }
    for number, (name, (ratio, options)) in enumerate(ways.items()):
        run = f"{tuned}-{number}"
        settings = {"global_batch_size": NUM_ROWS, "injection_ratio": ratio, "injection_mode": "add"}
        client.ensure_run(run, "pretraining", settings)
        yield name, Rehearsal(client, run, **options).open()


def step_of(model: Any, inputs: Mapping[str, Any], loop: RehearsalLoop) -> Callable[[], None]:
    """One step of a loop, without an optimizer's."""

    def step() -> None:
        batch = loop.mix(loop.stream.next_step, inputs)
        output = model(**batch.inputs)
        loss = output.loss
        if batch.num_rehearsed:
            losses = batch.losses(output.logits)
            loop.report(batch, losses)
            loss = batch.weigh(loss, losses)
        loss.backward()
        model.zero_grad()

    return step


def timed(step: Callable[[], None]) -> float:
    """CPU seconds of a step, which other work on the machine changes least."""
    began = time.process_time()
    step()
    return time.process_time() - began


if __name__ == "__main__":
    main()
