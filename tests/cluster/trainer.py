"""One rank that trains: it gets the batch of each step and reports it, and writes down what it got and when.

    python -m tests.cluster.trainer URLS RUN RANK WORLD_SIZE OUTPUT

It trains until the file OUTPUT.stop holds a step, and ends before that one.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from replay_service.wire.losses import LOSS_ROW
from replay_trainer.client import ReplayClient, RetryPolicy

STEP_S = 0.1


def main(urls: str, run: str, rank: int, world_size: int, output: Path) -> None:
    stop = output.with_suffix(".stop")
    with ReplayClient(urls, retry=RetryPolicy(give_up_after_s=600.0)) as client, output.open("a") as lines:
        step = 0
        while not stop.exists() or step < int(stop.read_text()):
            batch = client.batch(run, step, rank=rank, world_size=world_size)
            rows = np.zeros(len(batch), dtype=LOSS_ROW)
            rows["step"], rows["sample_id"], rows["rank"] = batch.step, batch.sample_id, rank
            rows["num_tokens"] = 10
            rows["loss_nats"] = 1.0 + (batch.sample_id % 7) / 7
            rows["num_flips"] = batch.sample_id % 5
            client.report(run, rows)
            said = {"step": step, "ids": batch.sample_id.tolist(), "at": time.monotonic()}
            lines.write(json.dumps(said) + "\n")
            lines.flush()
            step += 1
            time.sleep(STEP_S)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
