"""How exact an injection ratio is: Ray Data's `Dataset.mix` and this service: `python -m tests.benchmarks.mixing`.

README.md in this folder says what each column means.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import ray

from replay_service.ray_session import start_ray
from replay_service.settings import load_settings
from replay_trainer.client import ReplayClient
from tests.benchmarks.ratios import as_table
from tests.support import make_corpus, running_service

GLOBAL_BATCH_SIZE: Final = 64
RATIOS: Final = ("0.01", "0.02", "0.05")
WAYS: Final = ((1000, None), (100, None), (100, 10_000))
"""Rows of a block, and of the buffer that batches are drawn from at random."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    wanted = parser.parse_args()
    start_ray()
    rows = []
    for ratio in RATIOS:
        for block_rows, buffer_rows in WAYS:
            counts = mixed_by_ray(float(ratio), wanted.steps, block_rows, buffer_rows)
            name = f"Dataset.mix, blocks of {block_rows:,} rows"
            name += f", shuffle buffer of {buffer_rows:,}" if buffer_rows else ""
            rows.append([ratio, name, *described(counts, float(ratio))])
        rows.append([ratio, "this service", *described(served(ratio, wanted.steps), float(ratio))])
    head = ["asked for", "by", "share", "a step, least to most", "steps off by more than one row", "without any"]
    print(as_table(head, rows))


def mixed_by_ray(ratio: float, steps: int, block_rows: int, buffer_rows: int | None) -> np.ndarray:
    """Rehearsed rows in each of `steps` batches, int64 [steps], of a fine-tuning set mixed with a larger one."""
    # Twice as many rows as are taken: neither set comes to its end.
    num_rows = 2 * GLOBAL_BATCH_SIZE * steps
    tuning, pretraining = (dataset(is_rehearsed, num_rows, block_rows) for is_rehearsed in (0, 1))
    mixed = tuning.mix(pretraining, weights=[1 - ratio, ratio])
    batches = mixed.iter_batches(
        batch_size=GLOBAL_BATCH_SIZE,
        batch_format="numpy",
        drop_last=True,
        local_shuffle_buffer_size=buffer_rows,
        local_shuffle_seed=0,
    )
    return np.array([batch["is_rehearsed"].sum() for _, batch in zip(range(steps), batches, strict=False)])


def dataset(is_rehearsed: int, num_rows: int, block_rows: int) -> "ray.data.Dataset":
    tables = [pa.table({"is_rehearsed": [is_rehearsed] * block_rows}) for _ in range(num_rows // block_rows)]
    return ray.data.from_arrow(tables)


def served(ratio: str, steps: int) -> np.ndarray:
    """Rehearsed rows in each step of a run, as a client over HTTP sees them: int64 [steps]."""
    with tempfile.TemporaryDirectory() as folder:
        make_corpus(Path(folder) / "corpora", rows_per_domain=5000, rows_per_segment=5000)
        return np.fromiter(_counts(Path(folder), ratio, steps), dtype=np.int64)


def _counts(root: Path, ratio: str, steps: int) -> Iterator[int]:
    most = load_settings(root=root).max_steps_per_request
    with running_service(root) as (base_url, _), ReplayClient(base_url) as client:
        client.ensure_run("mixing", "wiki", {"global_batch_size": GLOBAL_BATCH_SIZE, "injection_ratio": ratio})
        for first in range(0, steps, most):
            batch = client.batch("mixing", first, num_steps=min(most, steps - first))
            yield from (header.num_rehearsed for header in batch.header.steps)


def described(counts: np.ndarray, ratio: float) -> list[str]:
    """Share, extremes, and how many steps are further than one row from the ratio, or have none."""
    wanted = ratio * GLOBAL_BATCH_SIZE
    return [
        f"{100 * counts.sum() / (len(counts) * GLOBAL_BATCH_SIZE):.2f} %",
        f"{counts.min()} to {counts.max()}",
        f"{100 * np.mean(np.abs(counts - wanted) > 1):.0f} %",
        f"{100 * np.mean(counts == 0):.0f} %",
    ]


if __name__ == "__main__":
    main()
