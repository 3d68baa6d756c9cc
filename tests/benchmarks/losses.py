"""What losses and their gradients cost a training step: `python -m tests.benchmarks.losses`.

README.md in this folder says what is counted.
"""

import argparse
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import Linear
from torch.nn.functional import cross_entropy

from replay_service.language.head import head_losses
from replay_service.language.losses import token_losses
from replay_service.language.model import autocast
from replay_service.language.precision import Precision
from tests.benchmarks.ratios import as_table

CPU: Final = torch.device("cpu")
Way = Callable[[Tensor, Linear, Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--hidden-size", type=int, default=576)
    parser.add_argument("--vocab-size", type=int, default=49152)
    parser.add_argument("--repeats", type=int, default=5)
    wanted = parser.parse_args()
    sizes = (wanted.rows, wanted.seq_len, wanted.hidden_size, wanted.vocab_size)
    lines = []
    for precision in ("bf16", "float32"):
        for name in WAYS:
            peak, seconds = measured_alone(name, precision, sizes, wanted.repeats)
            spread = f"{statistics.median(seconds):.2f} s ({min(seconds):.2f}-{max(seconds):.2f})"
            lines.append([precision, name, f"{peak >> 20:,} MiB", spread])
            print(*lines[-1], flush=True)
    print(as_table(["arithmetic", "way", "memory", "time"], lines))


def of_plain_formula(hidden: Tensor, head: Linear, input_ids: Tensor, _: Tensor) -> Tensor:
    """As it is written most often."""
    logits = head(hidden)[:, :-1].float()
    return cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none")


def of_logits(hidden: Tensor, head: Linear, input_ids: Tensor, length: Tensor) -> Tensor:
    return token_losses(head(hidden), input_ids, length).nll_BS


def of_hidden(hidden: Tensor, head: Linear, input_ids: Tensor, length: Tensor) -> Tensor:
    return head_losses(hidden, head, input_ids, length).nll_BS


WAYS: Final[dict[str, Way]] = {"cross_entropy": of_plain_formula, "token_losses": of_logits, "head_losses": of_hidden}


def measured_alone(
    name: str, precision: Precision, sizes: tuple[int, int, int, int], repeats: int
) -> tuple[int, list[float]]:
    """Bytes that the process takes more at its peak, and the seconds of each repeat, in a process of its own."""
    ours, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=measure, args=(its, name, precision, sizes, repeats))
    process.start()
    peak, seconds = ours.recv()
    process.join()
    return peak, seconds


def measure(to: Connection, name: str, precision: Precision, sizes: tuple[int, int, int, int], repeats: int) -> None:
    rows, seq_len, hidden_size, vocab_size = sizes
    torch.manual_seed(0)
    head = Linear(hidden_size, vocab_size, bias=False)
    hidden = torch.randn(rows, seq_len, hidden_size, requires_grad=True)
    input_ids, length = torch.randint(0, vocab_size, (rows, seq_len)), torch.full((rows,), seq_len)
    before = resident("VmRSS")
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        with autocast(precision, CPU):
            nll = WAYS[name](hidden, head, input_ids, length)
        torch.autograd.grad(nll.mean(), [hidden, head.weight])
        seconds.append(time.perf_counter() - began)
        del nll
    to.send((resident("VmHWM") - before, seconds))


def resident(field: str) -> int:
    """Bytes of this process in memory, now (`VmRSS`) or at most so far (`VmHWM`)."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


if __name__ == "__main__":
    main()
