"""What a job of many ranks asks of the one owner of its run: `python -m tests.benchmarks.scale`.

Each rank trains a step a second, and asks and reports by windows of steps. The owner's work is measured on one core
of this machine: a window is planned once, handed to a gateway for each rank, and reported by each rank. From that
follows how many cores it takes, and what the link to the gateways carries.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from replay_service.corpus.reading.reader import Corpus
from replay_service.gateway.processes.plans import encode_window
from tests.benchmarks.ledger import losses_of, record_on, report_all
from tests.benchmarks.ratios import as_table
from tests.ledger.worlds import open_journal, owner_of
from tests.support import make_corpus

ROWS_A_RANK: Final = 8
RATIO: Final = "0.05"
WINDOWS: Final = 6
"""Measured; one before them warms up."""
MOST_RANKS_MEASURED: Final = 64
"""Whose reports are measured; those of the others cost as much."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--window-steps", type=int, nargs="+", default=[16, 64])
    asked = parser.parse_args()
    head = ["ranks", "steps a window", "requests/s", "plan a step", "hand over a window", "a report"]
    head += ["cores of the owner", "to gateways", "commits/s"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_corpus(root, rows_per_domain=500_000, rows_per_segment=500_000, num_quantiles=8)
        corpus = Corpus(root / "wiki")
        cases = [(ranks, steps) for steps in asked.window_steps for ranks in asked.ranks]
        print(as_table(head, [cells(root / f"{ranks}-{steps}.sqlite", corpus, ranks, steps) for ranks, steps in cases]))


def cells(path: Path, corpus: Corpus, ranks: int, steps: int) -> list[str]:
    """A row of the table: the owner's work for a job of so many ranks."""
    with open_journal(path) as journal:
        journal.create_run(record_on(corpus, global_batch_size=ROWS_A_RANK * ranks, injection_ratio=RATIO))
        owner = owner_of(journal, corpus)
        plan_s, hand_s, report_s, num_bytes = [], [], [], 0
        for number in range(1 + WINDOWS):
            first = number * steps
            plan_s.append(cpu_s(partial(owner.window, first, steps, 1 << 20)))
            window = owner.window_at_hand(first, steps) or owner.window(first, steps, 1 << 20)
            num_bytes = len(encode_window(window))
            hand_s.append(cpu_s(partial(encode_window, window)))
            of_ranks = range(min(ranks, MOST_RANKS_MEASURED))
            reports = [np.concatenate([losses_of(plan, rank, ranks) for plan in window.plans]) for rank in of_ranks]
            report_s.append(cpu_s(partial(report_all, owner, [each for each in reports if len(each)])) / len(of_ranks))
    plan, hand, report = (float(np.median(each[1:])) for each in (plan_s, hand_s, report_s))
    asked_s = ranks / steps
    cores = plan / steps + asked_s * (hand + report)
    return [
        f"{ranks:,}",
        f"{steps}",
        f"{2 * asked_s:,.0f}",
        f"{1000 * plan / steps:.2g} ms",
        f"{1000 * hand:.2g} ms",
        f"{1000 * report:.2g} ms",
        f"{cores:.2g}",
        f"{num_bytes * asked_s / 1e6:,.3g} MB/s",
        f"up to {asked_s + 1 / steps:,.0f}",
    ]


def cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    main()
