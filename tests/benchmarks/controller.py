"""How `injection_ratio = "auto"` holds a budget of forgetting in a real job: `python -m tests.benchmarks.controller`.

README.md in this folder says what is counted.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from replay_trainer.batches.target import concatenated, packed_by_domain
from replay_trainer.client import ReplayClient
from replay_trainer.config import TrainConfig
from replay_trainer.job.loop import fine_tune
from replay_trainer.job.metrics import MetricsFile
from replay_trainer.job.ray_train import preflight

from replay_service.corpus.shards.sources import Columns, Document, find_shards, read_documents
from replay_service.demo.materials import Amounts, write_shards
from replay_service.language.model import load_model
from replay_service.language.model_parts import LanguageLosses
from replay_service.language.packing import PackedRows
from replay_service.language.scoring import RowScorer
from replay_service.language.tokenizer import ends_of, fingerprint, load_tokenizer
from replay_service.testing.corpus import MadeUpCorpus
from tests.benchmarks.ratios import as_table
from tests.support import make_tiny_model, running_service
from tests.trainer.worlds import AloneWorker

SEQ_LEN: Final = 64
VOCAB: Final = 2048
ROWS: Final = 16
CORPUS: Final = "pretraining"
AMOUNTS: Final = Amounts(corpus=300_000, heldout=20_000, target=900_000)
COLUMNS: Final = Columns("text", None, "domain")
FIXED: Final = ("0", "0.01", "0.05", "0.1")
RESCORED: Final = 384
"""Rows of the corpus that are scored again for the true forgetting."""


@dataclass(frozen=True, slots=True)
class Point:
    """What the service says of a run after a step, and what is true."""

    step: int
    ratio: float
    estimate: float | None
    standard_error: float | None
    true: float


@dataclass(frozen=True, slots=True)
class Arm:
    """A job and what came of it."""

    name: str
    points: list[Point]
    num_rehearsed: int
    target_loss: float

    def after(self, share: float) -> list[Point]:
        """The points of the last part of the job."""
        return [each for each in self.points if each.step >= share * self.points[-1].step]


@dataclass(frozen=True, slots=True)
class World:
    """A base model, its corpus, a service that serves it, and how long jobs are."""

    folder: Path
    model: Path
    url: str
    rows: PackedRows
    base_loss: NDArray[np.float32]
    num_steps: int
    every: int


class Rescoring(AloneWorker):
    """Takes a checkpoint to score some rows of the corpus again, by the model as it is then."""

    def __init__(self, world: World, run: str | None) -> None:
        super().__init__()
        torch.set_num_threads(2)
        self.points: list[Point] = []
        self._world, self._run = world, run
        self._place = np.random.default_rng(0).permutation(len(world.base_loss))[:RESCORED]
        self._model = load_model(str(world.model))

    def save(self, state: dict[str, Any], step: int) -> None:
        self._model.load_state_dict(state["model"])
        true = mean_loss(self._model, self._world.rows, self._place) - float(self._world.base_loss[self._place].mean())
        if self._run is None:
            self.points.append(Point(step, 0.0, None, None, true))
            return
        with ReplayClient(self._world.url) as client:
            stats = client.stats(self._run)
        found = (stats[name] for name in ("injection_ratio", "forgetting_nats", "forgetting_standard_error"))
        self.points.append(Point(step, *found, true))


@torch.no_grad()
def mean_loss(model: Any, rows: PackedRows, place: NDArray[np.int64]) -> float:
    """Mean over these rows of their mean loss, nats per token."""
    measure, total = LanguageLosses(model), 0.0
    for some in np.array_split(place, -(-len(place) // 64)):
        ids, length = (torch.from_numpy(each[some].astype(np.int64)) for each in (rows.input_ids, rows.length))
        total += float(measure(ids, length).mean_nats().double().sum())
    return total / len(place)


@contextmanager
def a_world(folder: Path, args: argparse.Namespace) -> Iterator[World]:
    """Pretrains a model on the demo's text, scores that text by it, and serves it."""
    text = folder / "text"
    write_shards(text, AMOUNTS, seed=0)
    model = pretrained(folder, text, args.pretraining_steps)
    tokenizer = load_tokenizer(str(model))
    domains = packed_by_domain(text / "pretraining", COLUMNS, tokenizer, SEQ_LEN, ends_of(tokenizer))
    domain = np.repeat(np.arange(len(domains)), [len(each) for each in domains.values()])
    rows = concatenated(list(domains.values()))
    usable = rows.length > 1
    rows, domain = PackedRows(rows.input_ids[usable], rows.length[usable]), domain[usable]
    scores = RowScorer(str(model), "float32", batch_size=64).score(rows.input_ids, rows.length)
    MadeUpCorpus(tuple(domains), domain, rows, scores.base_loss, scores.correct).write(
        folder / "root" / "corpora" / CORPUS,
        num_quantiles=4,
        vocab_size=len(tokenizer),
        rows_per_segment=8192,
        tokenizer_fingerprint=fingerprint(tokenizer),
    )
    print(f"corpus: {len(rows)} rows of {SEQ_LEN} tokens, base loss {scores.base_loss.mean():.3f} nats", flush=True)
    with running_service(folder / "root") as (url, _):
        yield World(folder, model, url, rows, scores.base_loss, args.steps, args.every)


def pretrained(folder: Path, text: Path, num_steps: int) -> Path:
    """A Llama of a million parameters, with a tokenizer of its own, trained on the corpus's text."""
    documents = [
        each.content
        for shard in find_shards(text / "pretraining")
        for each in read_documents(shard, COLUMNS)
        if isinstance(each, Document) and isinstance(each.content, str)
    ]
    begun = make_tiny_model(folder / "begun", vocab_size=VOCAB, hidden_size=128, positions=SEQ_LEN, texts=documents)
    job = TrainConfig.model_validate(
        {
            **shared(begun, folder / "base", text / "pretraining", text / "heldout"),
            "num_steps": num_steps,
            "global_batch_size": 2 * ROWS,
            "learning_rate": 4e-3,
            "schedule": "cosine",
            "save_model": True,
        }
    )
    worker = AloneWorker()
    torch.set_num_threads(2)
    fine_tune(job, "float32", worker)
    return folder / "base" / "model"


def shared(model: Path, output: Path, target: Path, heldout: Path) -> dict[str, Any]:
    data = {"target": str(target), "heldout_target": str(heldout), "domain_column": "domain", "seq_len": SEQ_LEN}
    return {"model": str(model), "output": output, "data": data, "precision": "float32", "warmup_steps": 20}


def train(world: World, name: str, **rehearsal: Any) -> Arm:
    """Fine-tune on Spanish; `rehearsal` are settings of the run."""
    run = name.replace(".", "-").replace(" ", "-")
    output, text = world.folder / run, world.folder / "text"
    fenced = {"feedback": "fenced", "feedback_lag": 4, "signal": "excess_loss", "policy": "uniform"}
    job = TrainConfig.model_validate(
        {
            **shared(world.model, output, text / "target", text / "heldout_target"),
            "num_steps": world.num_steps,
            "global_batch_size": ROWS,
            "learning_rate": 3e-4,
            "schedule": "constant",
            "checkpoint_every": world.every,
            "save_model": False,
            "rehearsal": {"service_url": world.url, "corpus": CORPUS, "run": run, **fenced, **rehearsal},
        }
    )
    worker = Rescoring(world, run)
    began = time.monotonic()
    fine_tune(job, preflight(job), worker)
    with ReplayClient(world.url) as client:
        num_rehearsed = client.stats(run)["num_rehearsed"]
    loss = MetricsFile(output / "metrics.jsonl").evaluations()[world.num_steps]["target"]
    print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    return Arm(name, worker.points, num_rehearsed, loss)


def summary(arms: Sequence[Arm], world: World, budget: float) -> str:
    head = ("rehearsal", "rows rehearsed", "share", "forgetting at the end", "in the last half", "target loss")
    rows = []
    for arm in arms:
        late = [each.true for each in arm.after(0.5)]
        cells = [str(arm.num_rehearsed), f"{arm.num_rehearsed / (ROWS * world.num_steps):.2%}"]
        cells += [f"{arm.points[-1].true:+.3f}", f"{min(late):+.3f} to {max(late):+.3f}", f"{arm.target_loss:.3f}"]
        rows.append([arm.name, *cells])
    return f"Budget: {budget:g} nats.\n\n" + as_table(head, rows)


def trace(arm: Arm, budget: float) -> str:
    head = ("step", "ratio", "estimate", "true", "of the budget")
    rows = [
        [
            str(each.step),
            f"{each.ratio:.2%}",
            "-" if each.estimate is None else f"{each.estimate:+.3f} ± {each.standard_error:.3f}",
            f"{each.true:+.3f}",
            f"{each.true / budget:.0%}",
        ]
        for each in arm.points
    ]
    return as_table(head, rows) + f"\n\nThe ratio turned round {turns(arm)} times."


def turns(arm: Arm) -> int:
    """How often a rise of the ratio was followed by a fall, or a fall by a rise."""
    moves = np.sign(np.diff([each.ratio for each in arm.points]))
    moves = moves[moves != 0]
    return int((moves[1:] != moves[:-1]).sum())


def draw(arms: Sequence[Arm], budget: float, picture: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    for arm in arms:
        above.plot([each.step for each in arm.points], [each.true for each in arm.points], label=arm.name)
        if any(each.estimate is not None for each in arm.points) and arm.name.startswith("auto"):
            known = [each for each in arm.points if each.estimate is not None]
            above.plot([each.step for each in known], [each.estimate for each in known], ":", label="its estimate")
            below.plot([each.step for each in arm.points], [100 * each.ratio for each in arm.points])
    above.axhline(budget, color="grey", linestyle="--", label="budget")
    above.set(ylabel="forgetting, nats per token")
    above.legend()
    below.set(xlabel="step", ylabel="injection ratio, %")
    figure.savefig(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=0.45, help="nats per token")
    parser.add_argument("--first-ratio", default="0.02", help="where the controller begins")
    parser.add_argument("--steps", type=int, default=640, help="of each job")
    parser.add_argument("--every", type=int, default=32, help="steps between two points; the half-life too")
    parser.add_argument("--pretraining-steps", type=int, default=400)
    parser.add_argument("--fixed", nargs="*", default=FIXED, help="fixed injection ratios to compare with")
    parser.add_argument("--picture", type=Path, help="PNG file to draw")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="controller-") as folder, a_world(Path(folder), args) as world:
        limits = {"nats": args.budget, "first_ratio": args.first_ratio, "least_ratio": "0.01", "most_ratio": "0.5"}
        auto = train(world, "auto", injection_ratio="auto", budget=limits, half_life_steps=float(args.every))
        fixed = [
            train(world, f"fixed {each}", injection_ratio=each, half_life_steps=float(args.every))
            for each in args.fixed
        ]
        arms = [*fixed, auto]
        print(f"\n{summary(arms, world, args.budget)}\n\n{trace(auto, args.budget)}")
        if args.picture is not None:
            draw(arms, args.budget, args.picture)


if __name__ == "__main__":
    main()
