"""A language model pretrained here on 16 known domains: `python -m tests.evidence.world FOLDER`.

README.md in this folder says what it writes. A second call goes on where the first one stopped.
"""

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console

from replay_service.ray_session import start_ray
from replay_trainer.cli import watch_training
from replay_trainer.job.metrics import MetricsFile
from tests.evidence.base_model import SIZES, SizeName, make_model, pretraining_job
from tests.evidence.domains import PRETRAINING, TARGETS
from tests.evidence.shards import Amounts, Splitter, write_shard

CORPUS = Amounts(train=600_000, heldout=40_000)
TARGET = Amounts(train=1_000_000, heldout=60_000)


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
        train, heldout = (
            (folder / "pretraining", folder / "heldout")
            if role == "pretraining"
            else (folder / "targets" / source.name, folder / "targets_heldout" / source.name)
        )
        write_shard(train / f"{source.name}.parquet", source.name, split.train)
        write_shard(heldout / f"{source.name}.parquet", source.name, split.heldout)
        sources[source.name] = {
            "role": role,
            "packages": [f"{each.name} {each.version}".strip() for each in source.packages],
            "num_documents": len(split.train),
            "num_bytes": sum(len(each.encode()) for each in split.train),
            "num_heldout_bytes": sum(len(each.encode()) for each in split.heldout),
        }
        console.print(f"{source.name}: {sources[source.name]}", soft_wrap=True)
    listing.write_text(json.dumps(sources, indent=1))


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
    parser.add_argument("folder", type=Path)
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
