"""CPU time of one scrape of `/metrics`: `python -m tests.benchmarks.scrape`.

README.md in this folder says what the columns mean.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from fastapi.testclient import TestClient

from replay_service.gateway.logs import configure_logs
from replay_service.gateway.metrics.scrape import Scraper
from replay_service.wire.batches import decode_batch
from replay_service.wire.losses import encode_losses
from replay_service.wire.protocol import ARROW_STREAM
from tests.benchmarks.ratios import as_table
from tests.gateway.metrics.worlds import Series, parsed, value
from tests.gateway.worlds import client_on, losses_of
from tests.support import make_corpus

WINDOW: Final = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 50])
    parser.add_argument("--domains", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=20)
    wanted = parser.parse_args()
    configure_logs("error")
    rows = [_row(num_runs, wanted.domains, wanted.repeats) for num_runs in wanted.runs]
    print(as_table(["runs", "series", "KiB", "CPU of a scrape, median (least-most)", "while all runs go on"], rows))


def _row(num_runs: int, num_domains: int, repeats: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        domains = tuple(f"domain {i:03d}" for i in range(num_domains))
        make_corpus(Path(folder) / "corpora", domains=domains, rows_per_domain=200)
        with client_on(Path(folder), durability="relaxed") as client:
            names = [f"run-{i:04d}" for i in range(num_runs)]
            for name in names:
                _create(client, name)
            trained = names[-50:]
            for name in trained:
                _train(client, name, 0)
            scraper: Scraper = client.app.state.scraper  # type: ignore[attr-defined]
            text = _await(scraper, lambda found: len(found.get("replay_run_info", {})) == len(trained))
            still = [_cpu_ms(scraper) for _ in range(repeats)]
            going = []
            for turn in range(1, repeats + 1):
                for name in trained:
                    _train(client, name, turn * WINDOW, 1)
                going.append(_cpu_ms(scraper))
    num_series = sum(1 for line in text.splitlines() if not line.startswith("#"))
    return [f"{num_runs:,}", f"{num_series:,}", f"{len(text) / 1024:.0f}", _spread(still), _spread(going)]


def _cpu_ms(scraper: Scraper) -> float:
    """CPU time of the thread that scrapes, milliseconds."""
    began = time.thread_time()
    scraper.text(lambda _: True)
    return 1000.0 * (time.thread_time() - began)


def _spread(found: list[float]) -> str:
    return f"{statistics.median(found):.1f} ms ({min(found):.1f}-{max(found):.1f})"


def _await(scraper: Scraper, holds: Callable[[Series], bool]) -> str:
    while True:
        text = scraper.text(lambda _: True)
        if holds(parsed(text)) and value(parsed(text), "run_domain_damage_ratio") is not None:
            return text
        time.sleep(0.5)


def _create(client: TestClient, name: str) -> None:
    run = {"run": name, "corpus": "wiki", "global_batch_size": 64, "injection_ratio": "0.5"}
    client.post("/v1/runs", json=run).raise_for_status()


def _train(client: TestClient, name: str, step: int, num_steps: int = WINDOW) -> None:
    answer = client.post(f"/v1/runs/{name}/batches", json={"step": step, "num_steps": num_steps})
    rows: Any = losses_of(decode_batch(answer.raise_for_status().content), num_flips=2)
    headers = {"content-type": ARROW_STREAM}
    client.post(f"/v1/runs/{name}/losses", content=bytes(encode_losses(rows)), headers=headers).raise_for_status()


if __name__ == "__main__":
    main()
