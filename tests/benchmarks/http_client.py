"""What a batch costs a training node, by its own HTTP client and by httpx: `python -m tests.benchmarks.http_client`.

Both ask the same service for the same windows, turn by turn. CPU time is that of the asking process alone, decoding and
checking included.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx2

from replay_trainer.client import ReplayClient
from tests.support import make_corpus, running_service

SEQ_LEN = 1024
NUM_STEPS = 128
SETTINGS = {"injection_ratio": "0.5", "global_batch_size": 128}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 16], help="of one request, 64 rows each")
    parser.add_argument("--requests", type=int, default=200, help="of one turn")
    parser.add_argument("--repeats", type=int, default=9)
    wanted = parser.parse_args()
    with clients() as (own, by_httpx):
        print("| steps a request | by | CPU a request, median (least to most) | ratio |\n| --- | --- | --- | --- |")
        for steps in wanted.steps:
            turns = [[cpu_ms(each, steps, wanted.requests) for each in (own, by_httpx)] for _ in range(wanted.repeats)]
            ratios = [turn[1] / turn[0] for turn in turns]
            print(f"| {steps} | HttpClient | {spread([turn[0] for turn in turns])} ms | 1.00 |")
            print(f"| {steps} | httpx | {spread([turn[1] for turn in turns])} ms | {spread(ratios)} |")


@contextmanager
def clients() -> Iterator[tuple[ReplayClient, ReplayClient]]:
    """A client on sockets and one by httpx, of one service whose plans exist."""
    with tempfile.TemporaryDirectory() as folder:
        make_corpus(Path(folder) / "corpora", rows_per_domain=8192, rows_per_segment=8192, seq_len=SEQ_LEN)
        with (
            running_service(Path(folder), options=["--log-level", "warning"]) as (url, _),
            ReplayClient(url) as own,
            ReplayClient(url, transport=httpx2.HTTPTransport()) as by_httpx,
        ):
            own.ensure_run("bench", "wiki", SETTINGS)
            own.batch("bench", 0, num_steps=NUM_STEPS)
            yield own, by_httpx


def cpu_ms(client: ReplayClient, steps: int, num_requests: int) -> float:
    """CPU time of a request, milliseconds."""
    began = time.process_time()
    for number in range(num_requests):
        client.batch("bench", number * steps % (NUM_STEPS - steps + 1), num_steps=steps)
    return 1e3 * (time.process_time() - began) / num_requests


def spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    main()
