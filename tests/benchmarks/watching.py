"""What watchers cost a job: `python -m tests.benchmarks.watching`.

README.md in this folder says what the tables mean.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx2
import numpy as np

from replay_service.ledger.database import open_database
from replay_service.ledger.forgetting_curves import CurveReader
from replay_service.ledger.journal import Journal
from replay_service.ledger.records import RunRecord
from replay_service.sampling.events import Created, Event
from replay_service.sampling.plan import plan_steps
from replay_service.sampling.run_config import RunConfig
from replay_service.sampling.run_state import RunState, fold_all
from tests.benchmarks.ratios import as_table
from tests.benchmarks.serving_clients import ROWS, Measured, Work, measure
from tests.sampling.worlds import partition_of_sizes, report_of
from tests.support import make_corpus, running_service

NUM_PREPARED: Final = 50
PAGES: Final = ("strata?domain=en", "forgetting", "samples?limit=10", "events?limit=50")
"""What a page asks for, besides the list of runs and the statistics; a poller asks for the statistics alone."""


@dataclass(slots=True)
class Looks:
    """What watchers saw: how long each answer took, seconds, and how many were no answers."""

    times: list[float] = field(default_factory=list)
    num_events: int = 0
    num_refused: int = 0


def watch(
    base_url: str, run: str, seconds: float, max_age_s: float, pollers: int, pages: int, streams: int, scrapers: int
) -> Looks:
    """Let watchers look on for some seconds: once a second each, or by a stream of events."""
    looks, ends_at = Looks(), time.monotonic() + seconds
    stats = [f"/v1/runs/{run}/stats?max_age_s={max_age_s}"]
    whole = ["/v1/runs", *stats, *(f"/v1/runs/{run}/{each}" for each in PAGES)]
    of_all = [stats] * pollers + [whole] * pages + [["/metrics"]] * scrapers
    work: list[Callable[[], None]] = [lambda paths=paths: _ask(base_url, paths, ends_at, looks) for paths in of_all]  # type: ignore[misc]
    work += [lambda: _follow(base_url, run, ends_at, looks)] * streams
    threads = [threading.Thread(target=each) for each in work]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return looks


def _ask(base_url: str, paths: list[str], ends_at: float, looks: Looks) -> None:
    with httpx2.Client(base_url=base_url, timeout=60.0) as client:
        while time.monotonic() < ends_at:
            next_at = time.monotonic() + 1.0
            for path in paths:
                began = time.perf_counter()
                is_answered = client.get(path).status_code == 200
                looks.times.append(time.perf_counter() - began)
                looks.num_refused += not is_answered
            time.sleep(max(0.0, min(next_at, ends_at) - time.monotonic()))


def _follow(base_url: str, run: str, ends_at: float, looks: Looks) -> None:
    headers = {"accept": "text/event-stream"}
    with (
        suppress(httpx2.ReadTimeout),
        httpx2.Client(base_url=base_url, timeout=max(1.0, ends_at - time.monotonic())) as client,
        client.stream("GET", f"/v1/runs/{run}/events", headers=headers) as answer,
    ):
        for line in answer.iter_lines():
            looks.num_events += line.startswith("data")
            if time.monotonic() >= ends_at:
                return


def train(base_url: str, clients: int, seconds: float) -> tuple[str, Work]:
    """A new run with prepared steps, and the work of its clients: new plans, all reported."""
    run = f"run-{time.time_ns()}"
    body = {"run": run, "corpus": "wiki", "global_batch_size": ROWS * clients, "injection_ratio": "1"}
    httpx2.post(f"{base_url}/v1/runs", json=body | {"report_window_steps": 100}).raise_for_status()
    port = int(base_url.rpartition(":")[2])
    return run, Work(port, "new plans, reported", clients, run, seconds, NUM_PREPARED)


def turns(args: argparse.Namespace, base_url: str, pool: ProcessPoolExecutor) -> list[list[str]]:
    """The rate of reported rows without and with watchers, in turn; a line a round."""
    lines = []
    for number in range(args.rounds):
        rates: list[float] = []
        looks = Looks()
        for watched in (False, True) if number % 2 == 0 else (True, False):
            run, work = train(base_url, args.clients, args.seconds)
            pool.submit(measure, work.prepared()).result()
            training = pool.submit(measure, work)
            if watched:
                watchers = (args.max_age, args.pollers, args.pages, args.streams, args.scrapers)
                looks = pool.submit(watch, base_url, run, args.seconds, *watchers).result()
            measured: Measured = training.result()
            rates.append(measured.num_rows / measured.seconds)
        alone, beside = rates if number % 2 == 0 else rates[::-1]
        p50, p95 = (1000 * float(np.quantile(looks.times or [0.0], each)) for each in (0.5, 0.95))
        lines.append(
            [
                f"{alone:,.0f}",
                f"{beside:,.0f}",
                f"{beside / alone:.2f}",
                str(len(looks.times)),
                str(looks.num_refused),
                f"{p50:.0f} ms",
                f"{p95:.0f} ms",
                str(looks.num_events),
            ]
        )
    return lines


def a_long_journal(folder: Path, num_steps: int, num_domains: int) -> Journal:
    """The journal of a run of so many steps, all reported, without snapshots."""
    sizes = (2000,) * (4 * num_domains)
    created = Created(RunConfig(global_batch_size=64, injection_ratio="0.05", seed=3), 1, 4, sizes)
    partition, state = partition_of_sizes(sizes, 4), RunState.initial(created)
    journal = Journal(open_database(f"sqlite:///{folder / 'long.sqlite'}", "relaxed"))
    journal.create_run(RunRecord("long", "wiki", created, "2026-01-01T00:00:00Z"))
    lease, rng, seq = journal.take("long"), np.random.default_rng(0), 1
    while state.next_step < num_steps:
        plans = plan_steps(state, partition, min(num_steps, state.next_step + 16) - 1)
        fold_all(state, plans)
        reports = [
            report_of(each.step, np.unique(each.rows["sample_id"]), loss=1.0 + rng.normal(0.05, 0.3))
            for each in plans
            if len(each.rows)
        ]
        fold_all(state, reports)
        events: list[Event] = [*plans, *reports]
        journal.append(lease, 1, seq, events)
        seq += len(events)
    return journal


def curve_looks(num_steps: int, num_domains: int) -> list[str]:
    """How long looks at the curves of a long run take: the first ones, one without news, one after a restart."""
    with tempfile.TemporaryDirectory() as folder:
        journal = a_long_journal(Path(folder), num_steps, num_domains)
        reader, times = CurveReader(journal), list[float]()
        is_whole = False
        while not is_whole:
            began = time.perf_counter()
            found = reader.read("long")
            times.append(time.perf_counter() - began)
            is_whole = found.is_whole
        again = [_timed(lambda: reader.read("long")) for _ in range(20)]
        restarted = _timed(lambda: CurveReader(journal).read("long"))
        journal.close()
    return [
        f"{num_steps:,}",
        str(num_domains),
        str(len(found.points)),
        f"{sum(times):.1f} s in {len(times)}",
        f"{max(times):.2f} s",
        f"{1000 * statistics.median(again):.1f} ms",
        f"{1000 * restarted:.0f} ms",
    ]


def _timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--pollers", type=int, default=0, help="ask for the statistics once a second")
    parser.add_argument("--pages", type=int, default=10, help="ask for all that a page shows, once a second")
    parser.add_argument("--streams", type=int, default=10, help="follow the events")
    parser.add_argument("--scrapers", type=int, default=1, help="ask for /metrics once a second")
    parser.add_argument("--max-age", type=float, default=1.0, help="of the statistics that watchers take, seconds")
    parser.add_argument("--gateways", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--curve-steps", type=int, default=10_000, help="0: leave the looks at curves out")
    parser.add_argument("--curve-domains", type=int, nargs="+", default=[1, 8])
    args = parser.parse_args()
    if args.rounds:
        with (
            tempfile.TemporaryDirectory() as folder,
            ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool,
        ):
            root = Path(folder)
            make_corpus(root / "corpora", rows_per_domain=5000, seq_len=1024, rows_per_segment=5000)
            options = ["--gateways", str(args.gateways), "--log-level", "error"]
            with running_service(root, options=options) as (base_url, _):
                lines = turns(args, base_url, pool)
        heads = ["rows/s alone", "rows/s watched", "ratio", "looks", "refused", "p50", "p95", "events"]
        print(as_table(heads, lines), flush=True)
    if args.curve_steps:
        heads = ["steps", "domains", "points", "first looks", "longest", "later look", "after a restart"]
        print(as_table(heads, [curve_looks(args.curve_steps, each) for each in args.curve_domains]))


if __name__ == "__main__":
    main()
