"""How often intervals of forgetting hold the truth on real models: `python -m tests.evidence.coverage WORLD`.

Real jobs rehearse through a real service. Every few steps the same rows are scored by the weights as they are then, and
what they have lost is compared with what the service estimates. `WORLD` is a folder that `tests.evidence.world` made;
`--demo` takes the demo's model and text, and makes all it needs in the folder.
"""

import argparse
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

from replay_service.corpus.format.manifest import MANIFEST_NAME
from replay_service.corpus.ingest.driver import ingest
from replay_service.corpus.ingest.progress_line import ingest_progress
from replay_service.corpus.ingest.settings import IngestSettings
from replay_service.corpus.shards.sources import Columns
from replay_service.demo import materials
from replay_service.demo.jobs import FULL
from replay_service.demo.process import service_process
from replay_service.language.model import load_model
from replay_service.language.tokenizer import load_tokenizer
from replay_service.progress import duration, seconds_left
from replay_service.ray_session import start_ray
from replay_trainer.config import TrainConfig
from replay_trainer.job.ray_train import preflight
from tests.evidence.base_model import SEQ_LEN, SIZES
from tests.evidence.domains import TARGETS
from tests.evidence.held import by_domain, summary
from tests.evidence.recomputed import since
from tests.evidence.tracked import Measured, Point, points_file, read_points, track
from tests.evidence.truth import rows_of_corpus, rows_of_text, shares_of_domains

CORPUS: Final = "pretraining"
PLACES: Final = {
    demo: re.compile(f"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", re.DOTALL)
    for demo, name in ((False, "real models"), (True, "the demo"))
}
"""Where in a page the summary stands."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is trained and measured.

    Attributes:
        root: folder of the service.
        text: folder with `pretraining` and `heldout` shards.
        shards: a glob, of the pretraining shards to rehearse from.
        targets: name of each target, its shards to train on and its held-out ones.
        corpus_rows, heldout_rows: how many rows of each domain are scored again and again.
    """

    model: Path
    root: Path
    text: Path
    shards: str
    targets: dict[str, tuple[Path, Path]]
    seq_len: int
    num_quantiles: int
    corpus_rows: int
    heldout_rows: int
    job: dict[str, Any]
    ratio: str

    def config(self, target: str, seed: int, url: str) -> TrainConfig:
        train, heldout = self.targets[target]
        run = run_of(target, seed)
        return TrainConfig.model_validate(
            {
                "model": str(self.model),
                "output": self.root / "jobs" / run,
                "schedule": "constant",
                "seed": seed,
                "save_model": False,
                "data": {
                    "target": str(train),
                    "heldout_target": str(heldout),
                    "domain_column": "domain",
                    "seq_len": self.seq_len,
                },
                "rehearsal": {"service_url": url, "corpus": CORPUS, "run": run, "injection_ratio": self.ratio},
                **self.job,
            }
        )


def of_world(folder: Path, size: str) -> Setting:
    text = folder / "text"
    targets = {each.name: (text / "targets" / each.name, text / "targets_heldout" / each.name) for each in TARGETS}
    return Setting(
        model=folder / "pretraining_jobs" / size / "model",
        root=folder / "service" / size,
        text=text,
        shards="*-00000.parquet",
        targets=targets,
        seq_len=SEQ_LEN,
        num_quantiles=8,
        corpus_rows=64,
        heldout_rows=16,
        job={
            "num_steps": 250,
            "global_batch_size": 32,
            "learning_rate": 5e-4,
            "warmup_steps": 10,
            "checkpoint_every": 25,
        },
        ratio="0.05",
    )


def of_demo(folder: Path) -> Setting:
    """The demo's model, text and job, with more steps, and more held-out text to know the truth by."""
    text = folder / "text"
    if not text.exists():
        folder.mkdir(parents=True, exist_ok=True)
        amounts = materials.Amounts(corpus=60_000, heldout=16_000, target=100_000)
        materials.write_shards(text, amounts, FULL.seed)
    return Setting(
        model=materials.fetch_model(),
        root=folder / "service",
        text=text,
        shards="*.parquet",
        targets={"encyclopedia_es": (text / "target", text / "heldout_target")},
        seq_len=FULL.seq_len,
        num_quantiles=FULL.num_quantiles,
        corpus_rows=0,
        heldout_rows=40,
        job={
            "num_steps": 64,
            "global_batch_size": FULL.global_batch_size,
            "learning_rate": FULL.learning_rate,
            "warmup_steps": 5,
            "checkpoint_every": 8,
        },
        ratio=FULL.injection_ratio,
    )


def make_corpus(setting: Setting, console: Console) -> None:
    """Scores the pretraining text as `replay-service ingest` does, unless that was done before."""
    if (setting.root / "corpora" / CORPUS / MANIFEST_NAME).exists():
        return
    start_ray()
    settings = IngestSettings(
        source=str(setting.text / "pretraining" / setting.shards),
        folder=setting.root / "corpora",
        name=CORPUS,
        model=str(setting.model),
        seq_len=setting.seq_len,
        columns=Columns(domain="domain"),
        num_quantiles=setting.num_quantiles,
        batch_size=32,
    )
    with ingest_progress(console, "ingest") as on_progress:
        ingest(settings, on_progress)


def measured_rows(setting: Setting, config: TrainConfig) -> dict[str, Measured]:
    """The rows of the corpus and of held-out text, with their losses by the base model."""
    model, precision = load_model(str(setting.model)), preflight(config)
    corpus, tokenizer = setting.root / "corpora" / CORPUS, load_tokenizer(str(setting.model))
    shares = shares_of_domains(corpus)
    found = {"corpus": rows_of_corpus(corpus, setting.corpus_rows, seed=0)} if setting.corpus_rows else {}
    found["heldout"] = rows_of_text(
        setting.text / "heldout", tokenizer, setting.seq_len, setting.heldout_rows, 0, shares
    )
    return {kind: Measured.by(model, each, precision) for kind, each in found.items()}


def run_all(setting: Setting, targets: Sequence[str], seeds: Sequence[int], console: Console) -> list[Point]:
    """One seed of every target, then the next; a finished job is read from its file."""
    results = setting.root / "results"
    runs = [(target, seed) for seed in seeds for target in targets]
    left = [each for each in runs if not points_file(results, run_of(*each)).exists()]
    if left:
        with service_process(setting.root) as url:
            _run([setting.config(target, seed, url) for target, seed in left], setting, results, console)
    return [point for each in runs for point in read_points(points_file(results, run_of(*each)))]


def _run(jobs: Sequence[TrainConfig], setting: Setting, results: Path, console: Console) -> None:
    measured, began = measured_rows(setting, jobs[0]), time.monotonic()
    for number, job in enumerate(jobs):

        def tell(step: int, number: int = number, job: TrainConfig = job) -> None:
            done = (number + step / job.num_steps) / len(jobs)
            rest = seconds_left(time.monotonic() - began, done, 1.0 - done)
            note = "" if rest is None else f", {duration(rest)} left"
            console.print(f"{job.output.name}: step {step} of {job.num_steps}{note}", soft_wrap=True)

        track(job, measured, results, tell)


def run_of(target: str, seed: int) -> str:
    """The name of a job's run at the service."""
    return f"{target.replace('_', '-')}-{seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=list(SIZES), default="medium")
    parser.add_argument("--demo", action="store_true", help="the demo's model and text")
    parser.add_argument("--targets", nargs="+", help="by default the three reported ones")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--since", type=int, default=0, help="estimate from reports of this step on alone")
    parser.add_argument("--write", type=Path, help="page in which to put the summary")
    args = parser.parse_args()
    setting = of_demo(args.folder) if args.demo else of_world(args.folder, args.size)
    reported = [*setting.targets] if args.demo else [each.name for each in TARGETS if each.role == "reported"]
    console = Console()
    make_corpus(setting, console)
    points = run_all(setting, args.targets or reported, args.seeds, console)
    if args.since:
        points = since(setting.root, points, args.since)
    runs = {each.run for each in points}
    found = f"Jobs: {len(runs)}. Checks in each: {len(points) // len(runs)}.\n\n{summary(points)}"
    print(f"\n{found}\n\n{by_domain(points, next(iter(points[0].truth)))}")
    if args.write is not None:
        page = args.write.read_text()
        args.write.write_text(PLACES[args.demo].sub(lambda _: f"\n{found}\n\n", page))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
