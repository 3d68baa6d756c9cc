"""A language model pretrained here on 16 known domains: `python -m tests.evidence.world FOLDER`.

README.md in this folder says what it writes. A second call goes on where the first one stopped.
"""

import argparse
import json
from pathlib import Path
from typing import Final

import torch
from rich.console import Console

from replay_service.ray_session import start_ray
from replay_trainer.cli import watch_training
from replay_trainer.job.metrics import MetricsFile
from tests.evidence.base_model import SIZES, SizeName, make_model, pretraining_job
from tests.evidence.domains import PRETRAINING, TARGETS
from tests.evidence.shards import Amounts, Split, Splitter, write_shard

CORPUS: Final = Amounts(train=600_000, heldout=40_000)
TARGET: Final = Amounts(train=1_000_000, heldout=60_000)
NUM_SHARDS: Final = 4
"""Of a pretraining domain. Each is a random quarter of its documents: a corpus may be made of the first ones alone."""


def write_text(folder: Path, console: Console) -> None:
    """Shards of every domain and target, and `sources.json`, which says what they are made of."""
    listing = folder / "sources.json"
    if listing.exists():
        return
    splitter = Splitter()
    sources: dict[str, dict[str, object]] = {}
    targets = {each.source: each.role for each in TARGETS}
    for source in [*PRETRAINING, *targets]:
        role = targets.get(source, "pretraining")
        split = splitter.split(source.documents(), CORPUS if role == "pretraining" else TARGET)
        _write(folder, source.name, role, split)
        sources[source.name] = {
            "role": role,
            "packages": [f"{each.name} {each.version}".strip() for each in source.packages],
            "num_documents": len(split.train),
            "num_bytes": sum(len(each.encode()) for each in split.train),
            "num_heldout_bytes": sum(len(each.encode()) for each in split.heldout),
        }
        console.print(f"{source.name}: {sources[source.name]}", soft_wrap=True)
    listing.write_text(json.dumps(sources, indent=1))


def _write(folder: Path, name: str, role: str, split: Split) -> None:
    if role == "pretraining":
        for number in range(NUM_SHARDS):
            shard = folder / "pretraining" / f"{name}-{number:05d}.parquet"
            write_shard(shard, name, split.train[number::NUM_SHARDS])
        write_shard(folder / "heldout" / f"{name}.parquet", name, split.heldout)
    else:
        write_shard(folder / "targets" / name / f"{name}.parquet", name, split.train)
        write_shard(folder / "targets_heldout" / name / f"{name}.parquet", name, split.heldout)


def pretrain(folder: Path, name: SizeName, console: Console) -> None:
    """Writes `models/NAME`, by a job that goes on from its last checkpoint."""
    size, output = SIZES[name], folder / "pretraining_jobs" / name
    begun = output / "begun"
    if (output / "model" / "config.json").exists():
        return
    if not (begun / "config.json").exists():
        make_model(begun, size, seed=0)
    job = pretraining_job(size, begun, output, folder / "text")
    start_ray()
    watch_training(job, console, f"pretrain {name}")


def heldout_losses(folder: Path, name: SizeName) -> dict[str, float]:
    """Nats per byte of the pretrained model on the held-out text of each domain."""
    evaluations = MetricsFile(folder / "pretraining_jobs" / name / "metrics.jsonl").evaluations()
    return evaluations[max(evaluations)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=lambda given: Path(given).absolute())
    parser.add_argument("--size", choices=list(SIZES), default="medium")
    args = parser.parse_args()
    console = Console()
    write_text(args.folder / "text", console)
    pretrain(args.folder, args.size, console)
    for domain, loss in heldout_losses(args.folder, args.size).items():
        console.print(f"{domain}: {loss:.3f} nats per byte, held-out")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
