"""What long rehearsed rows cost a step, in one pass and in two: `python -m tests.benchmarks.two_passes`.

README.md in this folder says what each column means.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from replay_service.testing import replay_service
from replay_trainer.client import ReplayClient
from replay_trainer.plain import Rehearsal, RehearsalLoop
from tests.benchmarks.ratios import as_table, measured, repeated

NUM_ROWS: Final = 8
SEQ_LEN: Final = 512
VOCAB_SIZE: Final = 2048
WIDTHS: Final = (50, 200, 512)
RATIO: Final = "0.11111112"
"""One rehearsed row beside eight; a little less would leave the first step without one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1)
    wanted = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    rows = []
    with replay_service(seq_len=SEQ_LEN, vocab_size=VOCAB_SIZE, rows_per_domain=200) as service:
        for width in WIDTHS:
            inputs = batch_of(width)
            with service.client() as client:
                ways = [step_of(model, inputs, way) for way in ways_of(client, width)]
                rounds = repeated(1 + wanted.repeats, [lambda way=way: timed(way, wanted.steps) for way in ways])
            taken = [each[1:] for each in rounds]  # the first round warms up
            tokens = (NUM_ROWS * width, (NUM_ROWS + 1) * max(width, SEQ_LEN), NUM_ROWS * width + SEQ_LEN)
            for name, own, num in zip(("alone", "one pass", "two passes"), taken, tokens, strict=True):
                rows.append([str(width), name, f"{num:,}", f"{num / tokens[0]:.2f}", *measured(own, taken[0], "ms")])
    print(
        as_table(["width of a row", "rehearsal", "tokens", "tokens, ratio", "step", "step, ratio (least-most)"], rows)
    )


def batch_of(width: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, VOCAB_SIZE, (NUM_ROWS, width), generator=torch.Generator().manual_seed(width))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def ways_of(client: ReplayClient, width: int) -> Iterator[tuple[RehearsalLoop, bool]]:
    """The loops of a run without rehearsal and of two with it, and whether rehearsed rows are apart."""
    for name, ratio, apart in (("alone", "0", False), ("one", RATIO, False), ("two", RATIO, True)):
        run = f"{name}-{width}"
        settings = {"global_batch_size": NUM_ROWS, "injection_ratio": ratio, "injection_mode": "add"}
        client.ensure_run(run, "pretraining", settings)
        yield Rehearsal(client, run).open(), apart


def step_of(model: Any, inputs: Mapping[str, Any], way: tuple[RehearsalLoop, bool]) -> Callable[[], None]:
    """One step of a loop, without an optimizer's."""
    loop, apart = way

    def step() -> None:
        batch = loop.mix(loop.stream.next_step, inputs, apart=apart)
        output = model(**batch.inputs)
        loss = output.loss
        if batch.num_rehearsed:
            logits = model(**batch.rehearsed_inputs).logits if apart else output.logits  # type: ignore[attr-defined]
            losses = batch.losses(logits)
            loop.report(batch, losses)
            loss = batch.weigh(loss, losses)
        loss.backward()
        model.zero_grad()

    return step


def timed(step: Callable[[], None], num_steps: int) -> float:
    """CPU seconds of a step, which other work on the machine changes least."""
    began = time.process_time()
    for _ in range(num_steps):
        step()
    return (time.process_time() - began) / num_steps


if __name__ == "__main__":
    main()
