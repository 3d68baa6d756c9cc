"""How `injection_ratio = "auto"` holds a budget of forgetting in a real job: `python -m tests.benchmarks.controller`.

README.md in this folder says what is counted.
"""

import argparse
import itertools
import re
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

from replay_service.corpus.shards.sources import Columns, Document, find_shards, read_documents
from replay_service.demo.materials import Amounts, write_shards
from replay_service.language.model import load_model
from replay_service.language.model_parts import LanguageLosses
from replay_service.language.packing import PackedRows
from replay_service.language.scoring import RowScorer
from replay_service.language.tokenizer import ends_of, fingerprint, load_tokenizer
from replay_service.testing.corpus import MadeUpCorpus
from replay_trainer.batches.target import concatenated, packed_by_domain
from replay_trainer.client import ReplayClient
from replay_trainer.config import TrainConfig
from replay_trainer.job.loop import fine_tune
from replay_trainer.job.metrics import MetricsFile
from replay_trainer.job.ray_train import preflight
from tests.benchmarks.ratios import as_table
from tests.support import make_tiny_model, running_service
from tests.trainer.worlds import AloneWorker

SEQ_LEN: Final = 32
VOCAB: Final = 1024
ROWS: Final = 16
CORPUS: Final = "pretraining"
AMOUNTS: Final = Amounts(corpus=300_000, heldout=20_000, target=900_000)
COLUMNS: Final = Columns("text", None, "domain")
FIXED: Final = ("0.03", "0.06", "0.12")
SETTLED: Final = 4
"""Half-lives after which a job is judged."""
RESCORED: Final = 512
"""Rows that are kept out of the corpus, and scored again and again for the true forgetting."""


@dataclass(frozen=True, slots=True)
class Point:
    """What the service says of a run after a step, and what is true of text that the run never rehearses."""

    step: int
    ratio: float
    estimate: float | None
    low: float | None
    high: float | None
    true: float
    num_rehearsed: int
    """Rows up to the step."""
    held: tuple[bool, ...]
    """Of each domain of which something is said: whether its interval holds the truth."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A job and what came of it."""

    name: str
    points: list[Point]
    target_loss: float
    settled: int
    """The first step that is judged."""

    @property
    def judged(self) -> list[Point]:
        return [each for each in self.points if each.step >= self.settled]

    @property
    def most(self) -> float:
        """The greatest forgetting that is judged, nats per token."""
        return max(each.true for each in self.judged)

    @property
    def share(self) -> float:
        """The share of rows that was rehearsed in the whole job."""
        return self.points[-1].num_rehearsed / (ROWS * self.points[-1].step)

    @property
    def share_judged(self) -> float:
        """The same of the steps that are judged."""
        first, last = self.judged[0], self.judged[-1]
        return (last.num_rehearsed - first.num_rehearsed) / (ROWS * (last.step - first.step))


@dataclass(frozen=True, slots=True)
class World:
    """A base model, its corpus, a service that serves it, and how long jobs are."""

    folder: Path
    model: Path
    url: str
    rows: PackedRows
    """Of the corpus's text, and no part of the corpus."""
    domain: NDArray[np.int64]
    """Of each of them."""
    base_loss: NDArray[np.float32]
    num_steps: int
    every: int


class Rescoring(AloneWorker):
    """Takes a checkpoint to score some rows of the corpus again, by the model as it is then."""

    def __init__(self, world: World, run: str) -> None:
        super().__init__()
        torch.set_num_threads(1)
        self.points: list[Point] = []
        self._world, self._run = world, run
        self._model = load_model(str(world.model))

    def save(self, state: dict[str, Any], step: int) -> None:
        self._model.load_state_dict(state["model"])
        lost = losses(self._model, self._world.rows) - self._world.base_loss
        with ReplayClient(self._world.url) as client:
            stats = client.stats(self._run)
        found = stats["forgetting"]
        held = tuple(
            each["low"] <= lost[self._world.domain == domain].mean() <= each["high"]
            for domain, each in enumerate(stats["forgetting_by_domain"].values())
            if each["nats"] is not None
        )
        interval = found["nats"], found["low"], found["high"]
        ratio, num_rehearsed = stats["injection_ratio"], stats["rows_rehearsed"]
        self.points.append(Point(step, ratio, *interval, float(lost.mean()), num_rehearsed, held))


@torch.no_grad()
def losses(model: Any, rows: PackedRows) -> NDArray[np.float64]:
    """The mean loss of each row, nats per token."""
    measure, parts = LanguageLosses(model), []
    for some in np.array_split(np.arange(len(rows)), -(-len(rows) // 64)):
        ids, length = (torch.from_numpy(each[some].astype(np.int64)) for each in (rows.input_ids, rows.length))
        parts.append(measure(ids, length).mean_nats().double().numpy())
    return np.concatenate(parts)


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
    out, into = np.split(np.random.default_rng(0).permutation(len(domain)), [RESCORED])
    into.sort()
    kept = PackedRows(rows.input_ids[into], rows.length[into])
    MadeUpCorpus(tuple(domains), domain[into], kept, scores.base_loss[into], scores.correct[into]).write(
        folder / "root" / "corpora" / CORPUS,
        num_quantiles=4,
        vocab_size=len(tokenizer),
        rows_per_segment=8192,
        tokenizer_fingerprint=fingerprint(tokenizer),
    )
    print(f"corpus: {len(kept)} rows of {SEQ_LEN} tokens, base loss {scores.base_loss.mean():.3f} nats", flush=True)
    apart = PackedRows(rows.input_ids[out], rows.length[out])
    with running_service(folder / "root") as (url, _):
        yield World(folder, model, url, apart, domain[out], scores.base_loss[out], args.steps, args.every)


def pretrained(folder: Path, text: Path, num_steps: int) -> Path:
    """A Llama of some 200,000 parameters, with a tokenizer of its own, trained on the corpus's text."""
    documents = [
        each.content
        for shard in find_shards(text / "pretraining")
        for each in read_documents(shard, COLUMNS)
        if isinstance(each, Document) and isinstance(each.content, str)
    ]
    begun = make_tiny_model(folder / "begun", vocab_size=VOCAB, hidden_size=64, positions=SEQ_LEN, texts=documents)
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
    torch.set_num_threads(1)
    fine_tune(job, "float32", worker)
    return folder / "base" / "model"


def shared(model: Path, output: Path, target: Path, heldout: Path) -> dict[str, Any]:
    data = {"target": str(target), "heldout_target": str(heldout), "domain_column": "domain", "seq_len": SEQ_LEN}
    return {"model": str(model), "output": output, "data": data, "precision": "float32", "warmup_steps": 20}


def train(world: World, name: str, seed: int = 0, **rehearsal: Any) -> Arm:
    """Fine-tune on Spanish; `rehearsal` are settings of the run."""
    run = re.sub("[^a-z0-9]+", "-", name)
    output, text = world.folder / run, world.folder / "text"
    fenced = {"feedback": "fenced", "feedback_lag": 4, "signal": "excess_loss", "policy": "uniform"}
    job = TrainConfig.model_validate(
        {
            **shared(world.model, output, text / "target", text / "heldout_target"),
            "num_steps": world.num_steps,
            "global_batch_size": ROWS,
            "seed": seed,
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
    loss = MetricsFile(output / "metrics.jsonl").evaluations()[world.num_steps]["target"]
    arm = Arm(name, worker.points, loss, SETTLED * world.every)
    print(f"{' | '.join(cells(arm))} | {time.monotonic() - began:.0f} s", flush=True)
    return arm


def cells(arm: Arm) -> list[str]:
    true = [each.true for each in arm.judged]
    shares = [f"{arm.share:.2%}", f"{arm.share_judged:.2%}"]
    return [arm.name, *shares, f"{min(true):+.3f} to {max(true):+.3f}", f"{true[-1]:+.3f}", f"{arm.target_loss:.3f}"]


def summary(arms: Sequence[Arm]) -> str:
    head = ("rehearsal", "share", "after 4 half-lives", "forgetting since then", "at the end", "target loss")
    return as_table(head, [cells(arm) for arm in arms])


def least_ratio(fixed: Sequence[Arm], budget: float) -> float:
    """The least constant ratio that holds the budget after four half-lives; between two jobs along a power of it."""
    ascending = sorted(fixed, key=lambda arm: -arm.most)
    log_most, log_share = np.log([[arm.most, arm.share] for arm in ascending]).T
    if not log_most.min() <= np.log(budget) <= log_most.max():
        return float("nan")
    return float(np.exp(np.interp(-np.log(budget), -log_most, log_share)))


def verdict(autos: Sequence[tuple[float, Arm]], fixed: Sequence[Arm]) -> str:
    """Each controller beside its budget and beside the least constant ratio that holds it."""
    head = (
        "controller",
        "of the budget, least to most",
        "least constant ratio",
        "share / it",
        "after 4 half-lives / it",
    )
    rows = []
    for budget, arm in autos:
        least, true = least_ratio(fixed, budget), [each.true / budget for each in arm.judged]
        relative = [f"{arm.share / least:.2f}", f"{arm.share_judged / least:.2f}"]
        rows.append([arm.name, f"{min(true):.0%} to {max(true):.0%}", f"{least:.2%}", *relative])
    return as_table(head, rows)


def coverage(arms: Sequence[Arm]) -> str:
    """How often the service's intervals held the truth, over all jobs and points."""
    known = [each for arm in arms for each in arm.points if each.low is not None and each.high is not None]
    held = [each.low <= each.true <= each.high for each in known]  # type: ignore[operator]
    by_domain = [one for arm in arms for each in arm.points for one in each.held]
    return (
        f"The interval held the truth at {np.mean(held):.0%} of {len(held)} points, and that of a domain at "
        f"{np.mean(by_domain):.0%} of {len(by_domain)}."
    )


def trace(arm: Arm, budget: float) -> str:
    head = ("step", "ratio", "estimate", "true", "of the budget")
    rows = [
        [
            str(each.step),
            f"{each.ratio:.2%}",
            "-" if each.estimate is None else f"{each.estimate:+.3f} ({each.low:+.3f} to {each.high:+.3f})",
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.45, 0.6], help="nats per token")
    parser.add_argument("--first-ratios", nargs="+", default=["0.02", "0.3"], help="where the controller begins")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the jobs with the controller")
    parser.add_argument("--steps", type=int, default=384, help="of each job")
    parser.add_argument("--every", type=int, default=32, help="steps between two points; the half-life too")
    parser.add_argument("--pretraining-steps", type=int, default=600)
    parser.add_argument("--fixed", nargs="*", default=FIXED, help="fixed injection ratios to compare with")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="controller-") as folder, a_world(Path(folder), args) as world:
        half_life: dict[str, Any] = {"half_life_steps": float(args.every)}
        fixed = [train(world, f"fixed {each}", injection_ratio=each, **half_life) for each in args.fixed]
        autos = []
        for budget, first, seed in itertools.product(args.budgets, args.first_ratios, args.seeds):
            limits = {"nats": budget, "first_ratio": first, "least_ratio": "0.01", "most_ratio": "0.5"}
            name = f"auto {budget:g} from {first}, seed {seed}"
            autos.append((budget, train(world, name, seed, injection_ratio="auto", budget=limits, **half_life)))
        arms = [*fixed, *(arm for _, arm in autos)]
        print(f"\n{summary(arms)}\n\n{verdict(autos, fixed)}\n\n{coverage(arms)}")
        for budget, arm in autos:
            print(f"\n{arm.name}\n\n{trace(arm, budget)}")


if __name__ == "__main__":
    main()
