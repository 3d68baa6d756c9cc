"""The demo's three jobs, each a file that a user could write.

They are the same fine-tuning without rehearsal, with rows that are drawn uniformly and learned with cross-entropy, and
with as many rows by the recommended recipe.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from replay_service.demo.materials import Amounts

CORPUS = "demo"
RUN = "demo"
"""The run of the recommended recipe."""
TOPK = 8
"""Likeliest tokens of the base model that the corpus stores, from which the recipe learns."""
_GIB = 1 << 30
_WORKER_BYTES = 4 * _GIB
"""A worker holds 135M float32 weights, their gradients and AdamW's two moments, and its share of activations."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much the demo does."""

    amounts: Amounts
    seq_len: int
    num_quantiles: int
    num_steps: int
    evaluate_every: int
    learning_rate: float
    global_batch_size: int = 8
    injection_ratio: str = "0.125"
    seed: int = 0


FULL = Scale(
    amounts=Amounts(corpus=24_000, heldout=3_000, target=80_000),
    seq_len=96,
    num_quantiles=4,
    num_steps=16,
    evaluate_every=8,
    learning_rate=3e-4,
)
FAST = Scale(
    amounts=Amounts(corpus=4_500, heldout=1_500, target=20_000),
    seq_len=64,
    num_quantiles=2,
    num_steps=8,
    evaluate_every=8,
    learning_rate=5e-4,
)


def num_workers() -> int:
    """Two, or one where memory or cores are few."""
    import psutil

    room = psutil.virtual_memory().available >= 2 * _WORKER_BYTES + _GIB
    return 2 if room and (os.cpu_count() or 1) >= 2 else 1


@dataclass(frozen=True, slots=True)
class Job:
    """One job of the demo.

    Attributes:
        name: what the table and the picture call it.
        output: the folder of its metrics.
        file: its file.
        run: of its rehearsal; None without.
        keys: of its section `[rehearsal]`, beside corpus, run and ratio.
    """

    name: str
    output: str
    file: str
    run: str | None = None
    keys: str = ""


NONE = Job("no rehearsal", "without_rehearsal", "baseline.toml")
PLAIN = Job("cross-entropy", "cross_entropy", "cross_entropy.toml", f"{RUN}-cross-entropy", 'policy = "uniform"')
RECOMMENDED = Job("recommended recipe", "recommended", "trainer.toml", RUN, 'recipe = "recommended"')
JOBS = (NONE, PLAIN, RECOMMENDED)


def write_jobs(folder: Path, model: str, precision: str, scale: Scale, service_url: str) -> dict[Job, Path]:
    """Write the file of every job."""
    files = {job: folder / job.file for job in JOBS}
    for job, file in files.items():
        file.write_text(_job(job.output, model, precision, scale) + _rehearsal(job, scale, service_url))
    return files


def _rehearsal(job: Job, scale: Scale, service_url: str) -> str:
    if job.run is None:
        return ""
    return f"""
[rehearsal]
service_url = "{service_url}"
corpus = "{CORPUS}"
run = "{job.run}"
injection_ratio = "{scale.injection_ratio}"
{job.keys}
"""


def _job(output: str, model: str, precision: str, scale: Scale) -> str:
    return f"""\
model = '{model}'
output = "{output}"
num_steps = {scale.num_steps}
global_batch_size = {scale.global_batch_size}
num_workers = {num_workers()}
learning_rate = {scale.learning_rate}
schedule = "constant"
warmup_steps = 5
precision = "{precision}"
seed = {scale.seed}
evaluate_every = {scale.evaluate_every}

[data]
target = "text/target"
heldout_target = "text/heldout_target"
heldout_pretraining = "text/heldout"
domain_column = "domain"
seq_len = {scale.seq_len}
"""
