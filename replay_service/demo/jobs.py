"""The demo's two jobs: the same fine-tuning with and without rehearsal, each a file that a user could write."""

import os
from dataclasses import dataclass
from pathlib import Path

from replay_service.demo.materials import Amounts

CORPUS = "demo"
RUN = "demo"
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
    num_steps=32,
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


def write_jobs(folder: Path, model: str, precision: str, scale: Scale, service_url: str) -> tuple[Path, Path]:
    """Write trainer.toml, which rehearses, and baseline.toml, which does not."""
    rehearsal = f"""
[rehearsal]
service_url = "{service_url}"
corpus = "{CORPUS}"
run = "{RUN}"
injection_ratio = "{scale.injection_ratio}"
policy = "mix_cd"
"""
    with_rehearsal = folder / "trainer.toml"
    with_rehearsal.write_text(_job("with_rehearsal", model, precision, scale) + rehearsal)
    without = folder / "baseline.toml"
    without.write_text(_job("without_rehearsal", model, precision, scale))
    return with_rehearsal, without


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
save_model = false

[data]
target = "text/target"
heldout_target = "text/heldout_target"
heldout_pretraining = "text/heldout"
domain_column = "domain"
seq_len = {scale.seq_len}
"""
