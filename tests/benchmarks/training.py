"""What each method costs a training step: `python -m tests.benchmarks.training`.

README.md in this folder says what is counted.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from replay_service.demo.materials import fetch_model
from replay_service.language.model import faster_precision, load_model
from replay_service.language.model_parts import LanguageLosses, split_model
from replay_service.language.precision import Precision
from replay_service.testing.corpus import MadeUpCorpus
from replay_service.wire.batches import Batch
from replay_trainer.batches.mixing import MixedBatch, loss_rows, mix
from replay_trainer.batches.target import TargetRows, TrainingRows
from replay_trainer.client import ReplayClient
from replay_trainer.config import LoraConfig
from replay_trainer.job.adapters import Adapters
from replay_trainer.job.feed import Feed
from replay_trainer.job.objective import BaseModel, Counts, Objective
from replay_trainer.job.stopwatch import Stopwatch
from replay_trainer.methods.flow import FlowWeights
from replay_trainer.methods.ldifs import FeatureDrift
from replay_trainer.methods.teacher import Teacher, frozen_copy
from replay_trainer.rehearsal import RehearsalStream
from replay_trainer.reporting import LossReporter
from replay_trainer.session import RehearsalSession
from tests.benchmarks.ratios import as_table, measured
from tests.support import running_service

CPU: Final = torch.device("cpu")
WARM_UP: Final = 2


@dataclass(frozen=True, slots=True)
class Size:
    """Rows and tokens of a step, the share of rows that is rehearsed, and how many steps there are."""

    num_rows: int
    seq_len: int
    ratio: str
    num_steps: int

    @property
    def settings(self) -> dict[str, Any]:
        """Of a run."""
        return {"global_batch_size": self.num_rows, "injection_ratio": self.ratio}


@dataclass(slots=True)
class Stepper:
    """One way to train: a batch of each step, how it is measured, what is done with what it tells."""

    name: str
    model: Any
    objective: Objective
    next_batch: Callable[[int], MixedBatch]
    report: Callable[[np.ndarray], object]
    measures_flips: bool = True
    waited_s: float = 0.0

    def step(self, optimizer: torch.optim.Optimizer, number: int) -> float:
        """Train one step; seconds."""
        began = time.perf_counter()
        batch = self.next_batch(number)
        self.waited_s += time.perf_counter() - began
        of_job = Counts(*Counts.of(batch).tolist())
        found = self.objective.measure(self.model, batch, of_job, 1)
        if self.measures_flips:
            self.report(loss_rows(batch, found.losses, number, 0))
        torch.autograd.backward(found.loss)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--ratio", default="0.125", help="share of rows that is rehearsed")
    parser.add_argument("--lora", action="store_true", help="train adapters; the base model is the model without them")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 for one a core")
    parser.add_argument("--ways", nargs="*", default=[], help="parts of the names of the ways to train; all by default")
    wanted = parser.parse_args()
    torch.manual_seed(0)
    if wanted.threads:
        torch.set_num_threads(wanted.threads)
    folder, precision = fetch_model(), faster_precision()
    with tempfile.TemporaryDirectory() as root:
        write_corpus(Path(root), wanted.seq_len, load_model(str(folder)).config.vocab_size)
        with running_service(Path(root)) as (url, _), ReplayClient(url) as client:
            compare(client, str(folder), precision, wanted)


def write_corpus(root: Path, seq_len: int, vocab_size: int) -> None:
    made = MadeUpCorpus.random(("en", "fr"), 200, seq_len, vocab_size, 0)
    made.write(root / "corpora" / "pretraining", vocab_size=vocab_size, topk=8)


def compare(client: ReplayClient, folder: str, precision: Precision, wanted: argparse.Namespace) -> None:
    model = load_model(folder).train()
    if wanted.lora:
        model = Adapters(model, LoraConfig()).with_model
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-5, fused=True)
    num_steps = WARM_UP + wanted.steps
    every = all_ways(client, model, precision, Size(wanted.rows, wanted.seq_len, wanted.ratio, num_steps))
    ways = [each for each in every if not wanted.ways or any(part in each.name for part in wanted.ways)]
    rounds = [one_round(ways, optimizer, number) for number in range(num_steps)][WARM_UP:]
    columns = [list(each) for each in zip(*rounds, strict=True)]
    table = []
    for way, own in zip(ways, columns, strict=True):
        waiting = way.waited_s / (sum(own) * num_steps / wanted.steps)
        table.append([way.name, *measured(own, columns[0], "ms"), within(own, columns[0]), f"{waiting:.2%}"])
    threads = torch.get_num_threads()
    print(f"{wanted.rows} rows of {wanted.seq_len} tokens, {precision}, {wanted.steps} steps, {threads} threads")
    print(as_table(["a step with", "time", "ratio", "95 % interval of its median", "waiting for data"], table))


def one_round(ways: Sequence[Stepper], optimizer: torch.optim.Optimizer, number: int) -> list[float]:
    """A step of each way, seconds; every other round the other way round, so that none always follows the same one."""
    order = list(range(len(ways)))[:: -1 if number % 2 else 1]
    seconds = {place: ways[place].step(optimizer, number) for place in order}
    return [seconds[place] for place in range(len(ways))]


def within(own: Sequence[float], base: Sequence[float]) -> str:
    """Where the median of the ratios lies in 95 of 100 resamplings of the rounds."""
    ratios = np.array(own) / np.array(base)
    medians = np.median(np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return f"{low:.3f}-{high:.3f}"


def all_ways(client: ReplayClient, model: Any, precision: Precision, size: Size) -> list[Stepper]:
    num_rows, seq_len = size.num_rows, size.seq_len
    rng = np.random.default_rng(0)
    ids = rng.integers(1, model.config.vocab_size, (512, seq_len)).astype(np.uint16)
    target = TrainingRows(ids, np.full(512, seq_len, dtype=np.int32))
    base_loss = rng.gamma(4.0, 1.0, 512)
    weight = np.repeat(FlowWeights.fit(base_loss).of(base_loss)[:, None], seq_len, axis=1)
    weighed = TrainingRows(target.input_ids, target.length, weight)
    base = None if hasattr(model, "disable_adapter") else frozen_copy(model)
    drift, teacher = FeatureDrift(model, base=base), Teacher(model, base=base)
    in_memory = {topk: batches_of(client, topk, size) for topk in (False, True)}

    def of(rows: TrainingRows, topk: bool | None) -> Callable[[int], MixedBatch]:
        def next_batch(step: int) -> MixedBatch:
            rehearsed = None if topk is None else in_memory[topk].of_step(step)
            first, num_target = step * num_rows, num_rows - (0 if rehearsed is None else len(rehearsed))
            return mix(rows.take(np.arange(first, first + num_target) % len(rows)), rehearsed)

        return next_batch

    def by(
        loss: Any = "cross_entropy",
        moved: FeatureDrift | None = None,
        chunked: bool = False,
        teacher: BaseModel | None = None,
    ) -> Objective:
        return Objective(precision, loss, moved, Stopwatch(CPU), chunked, teacher)

    feed, send = over_http(client, target, size)
    apart, nowhere = LanguageLosses(model), (lambda _: None)
    return [
        Stepper("fine-tuning rows alone", model, by(), of(target, None), nowhere, measures_flips=False),
        Stepper("rehearsed rows, from memory", model, by(), of(target, False), nowhere, measures_flips=False),
        Stepper("and their losses and flips", model, by(), of(target, False), nowhere),
        Stepper("and over HTTP, reported", model, by(), feed.next, send),
        Stepper("and FLOW", model, by(), of(weighed, False), nowhere),
        Stepper("and LDIFS", model, by(moved=drift), of(target, False), nowhere),
        Stepper("and distilled", model, by("distill"), of(target, True), nowhere),
        Stepper(
            "and distilled by the base model",
            model,
            by("distill", teacher=BaseModel(teacher, None)),
            of(target, False),
            nowhere,
        ),
        Stepper("and a chunked head", apart, by(chunked=True), of(target, False), nowhere),
        Stepper(
            "and a chunked head, distilled by the base model",
            apart,
            by("distill", chunked=True, teacher=BaseModel(teacher, split_model(model if base is None else base))),
            of(target, False),
            nowhere,
        ),
    ]


def batches_of(client: ReplayClient, topk: bool, size: Size) -> Batch:
    """All that a run of its own rehearses, at once."""
    run = f"memory-{topk}".lower()
    client.ensure_run(run, "pretraining", size.settings)
    return client.batch(run, 0, num_steps=size.num_steps, topk=topk)


def over_http(client: ReplayClient, target: TrainingRows, size: Size) -> tuple[Feed, Callable[[np.ndarray], None]]:
    client.ensure_run("http", "pretraining", size.settings)
    stream = RehearsalStream(client, "http", 0, 1, size.num_steps)
    reporter = LossReporter(client, "http")
    return Feed(TargetRows(target, 0), size.num_rows, 0, 1, RehearsalSession(stream, reporter)), reporter.send


if __name__ == "__main__":
    main()
