"""What watchers cost a job: `python -m tests.benchmarks.watching`.

README.md in this folder says what the tables mean.
"""

import argparse
import asyncio
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import httpx2
import numpy as np
import psutil

from replay_service.ledger.database import open_database
from replay_service.ledger.forgetting_curves import CurveReader
from replay_service.ledger.journal import Journal
from replay_service.ledger.records import RunRecord
from replay_service.sampling.events import Created, Event
from replay_service.sampling.fold import fold_all
from replay_service.sampling.plan import plan_steps
from replay_service.sampling.run_config import RunConfig
from replay_service.sampling.run_state import RunState
from replay_trainer.client import ReplayClient
from tests.benchmarks.ratios import as_table
from tests.benchmarks.serving_clients import ROWS, Measured, Work, measure
from tests.gateway.page.worlds import DOMAINS, NUM_QUANTILES, Job
from tests.sampling.worlds import partition_of_sizes, report_of
from tests.support import make_corpus, running_service

NUM_PREPARED: Final = 50
NUM_OPENED: Final = 5
LIVE_S, CURVE_S, STRATA_S, SCRAPE_S = 2.0, 10.0, 30.0, 5.0
"""How often a page asks for its parts, as `page.js` does while a run goes on, and how often a scraper asks."""


@dataclass(slots=True)
class Looks:
    """What watchers saw: how long each answer took, seconds, how many were no answers, and how many events came."""

    times: list[float] = field(default_factory=list)
    num_events: int = 0
    num_refused: int = 0


def watch(base_url: str, run: str, seconds: float, pages: int, scrapers: int) -> Looks:
    """Let watchers, whose pages are open, look on for some seconds."""
    return asyncio.run(_watched(base_url, run, seconds, pages, scrapers))


async def _watched(base_url: str, run: str, seconds: float, pages: int, scrapers: int) -> Looks:
    looks, ends_at = Looks(), time.monotonic() + seconds
    path = f"/runs/{run}"
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=base_url, timeout=60.0, limits=limits) as client:
        ask = partial(_ask, client, ends_at, looks)
        work = [ask("/metrics", SCRAPE_S) for _ in range(scrapers)]
        for _ in range(pages):
            work += [ask(f"{path}/live", LIVE_S), ask(f"{path}/strata", STRATA_S)]
            work += [ask(f"{path}/curve", CURVE_S), ask(f"{path}/curve-points", CURVE_S)]
            work.append(_follow(client, f"/v1{path}/events", ends_at, looks))
        await asyncio.gather(*work)
    return looks


async def _ask(client: httpx2.AsyncClient, ends_at: float, looks: Looks, path: str, every_s: float) -> None:
    """Ask again and again; those who open a page do so at different times."""
    await asyncio.sleep(random.uniform(0.0, min(every_s, 5.0)))
    while time.monotonic() < ends_at:
        began = time.monotonic()
        is_answered = (await client.get(path)).status_code == 200
        looks.times.append(time.monotonic() - began)
        looks.num_refused += not is_answered
        await asyncio.sleep(max(0.0, min(began + every_s, ends_at) - time.monotonic()))


async def _follow(client: httpx2.AsyncClient, path: str, ends_at: float, looks: Looks) -> None:
    headers = {"accept": "text/event-stream"}
    with suppress(TimeoutError):
        async with (
            asyncio.timeout(max(0.0, ends_at - time.monotonic())),
            client.stream("GET", path, headers=headers) as answer,
        ):
            async for line in answer.aiter_lines():
                looks.num_events += line.startswith("data")


def train(base_url: str, args: argparse.Namespace) -> tuple[str, Work]:
    """A new run with prepared steps, and the work of its clients: new plans, all reported."""
    run = f"run-{time.time_ns()}"
    body = {"run": run, "corpus": "wiki", "global_batch_size": args.rows * args.clients, "injection_ratio": "1"}
    httpx2.post(f"{base_url}/v1/runs", json=body | {"report_window_steps": 100}).raise_for_status()
    port = int(base_url.rpartition(":")[2])
    work = Work(port, "new plans, reported", args.clients, run, args.seconds, NUM_PREPARED)
    return run, replace(work, rows=args.rows, training_s=args.training_s)


@dataclass(frozen=True, slots=True)
class Turn:
    """One measurement.

    Attributes:
        rate: rows a second.
        num_requests: of the clients that train.
        seconds: how long it took.
        server_s: processor time of the server meanwhile, seconds.
        opening_s: the same of one page that is opened, which happens before.
    """

    rate: float
    num_requests: int
    seconds: float
    server_s: float
    opening_s: float
    looks: Looks

    @property
    def per_1000(self) -> float:
        """Processor time of the server for 1,000 requests of clients, seconds."""
        return 1000.0 * self.server_s / self.num_requests


def turn(args: argparse.Namespace, base_url: str, pool: ProcessPoolExecutor, server: int, is_watched: bool) -> Turn:
    """Let clients train a new run, with watchers or without."""
    run, work = train(base_url, args)
    pool.submit(measure, work.prepared()).result()
    before = processor_time(server)
    for _ in range(NUM_OPENED):
        httpx2.get(f"{base_url}/runs/{run}", timeout=60).raise_for_status()
    opening_s = (processor_time(server) - before) / NUM_OPENED
    before = processor_time(server)
    training, looks = pool.submit(measure, work), Looks()
    if is_watched:
        looks = pool.submit(watch, base_url, run, args.seconds, args.pages, args.scrapers).result()
    measured: Measured = training.result()
    num_requests = 2 * measured.num_rows // args.rows
    spent = processor_time(server) - before
    return Turn(measured.num_rows / measured.seconds, num_requests, measured.seconds, spent, opening_s, looks)


def processor_time(server: int) -> float:
    """Of a process and its children, seconds."""
    process = psutil.Process(server)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def turns(args: argparse.Namespace, base_url: str, pool: ProcessPoolExecutor, server: int) -> list[list[str]]:
    """Measurements without and with watchers, in turn; a line a round."""
    lines = []
    for number in range(args.rounds):
        order = (False, True) if number % 2 == 0 else (True, False)
        found = {is_watched: turn(args, base_url, pool, server, is_watched) for is_watched in order}
        alone, beside = found[False], found[True]
        p50, p95 = (1000 * float(np.quantile(beside.looks.times or [0.0], each)) for each in (0.5, 0.95))
        more_s = beside.server_s - alone.per_1000 * beside.num_requests / 1000.0
        lines.append(
            [
                f"{alone.rate:,.0f}",
                f"{beside.rate:,.0f}",
                f"{beside.rate / alone.rate:.2f}",
                f"{alone.per_1000:.2f} s",
                f"{beside.per_1000:.2f} s",
                f"{more_s / beside.seconds:.3f} s",
                f"{1000 * beside.opening_s:.0f} ms",
                str(len(beside.looks.times)),
                str(beside.looks.num_refused),
                f"{p50:.0f} ms",
                f"{p95:.0f} ms",
                str(beside.looks.num_events),
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


def list_looks(num_runs: int, num_trained: int = 50) -> list[list[str]]:
    """How long lists of many runs take, of which some have trained: the first look after a start, and later ones."""
    paths = ("/v1/runs", "/v1/runs?limit=1000", "/", "/metrics")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_corpus(root / "corpora", domains=DOMAINS, num_quantiles=NUM_QUANTILES, rows_per_domain=1000)
        options = ["--log-level", "error"]
        environment = {"REPLAY_DURABILITY": "relaxed"}
        making = running_service(root, options=options, environment=environment)
        with making as (base_url, _), ReplayClient(base_url) as client:
            for number in range(num_runs):
                job = Job(client, f"run-{number:04}").begin("wiki")
                job.train(100 if number < num_trained else 0, window=20)
        with running_service(root, options=options) as (base_url, _), httpx2.Client(base_url=base_url) as asked:
            lines = []
            for path in paths:
                first = _timed(lambda path=path: asked.get(path).raise_for_status())  # type: ignore[misc]
                later = [_timed(lambda path=path: asked.get(path).raise_for_status()) for _ in range(10)]  # type: ignore[misc]
                lines.append([path, f"{1000 * first:.0f} ms", f"{1000 * statistics.median(later):.0f} ms"])
        return lines


def _timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rows", type=int, default=ROWS, help="that each client rehearses in a step")
    parser.add_argument(
        "--training-s", type=float, default=0.0, help="what a client trains in a step; by default it asks all the time"
    )
    parser.add_argument("--pages", type=int, default=20, help="that are open in browsers")
    parser.add_argument("--scrapers", type=int, default=1, help="that ask for /metrics every five seconds")
    parser.add_argument("--gateways", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--curve-steps", type=int, default=10_000, help="0: leave the looks at curves out")
    parser.add_argument("--curve-domains", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--runs", type=int, default=1000, help="in the lists; 0: leave the lists out")
    args = parser.parse_args()
    if args.rounds:
        with (
            tempfile.TemporaryDirectory() as folder,
            ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool,
        ):
            root = Path(folder)
            make_corpus(root / "corpora", rows_per_domain=5000, seq_len=1024, rows_per_segment=5000)
            options = ["--gateways", str(args.gateways), "--log-level", "error"]
            with running_service(root, options=options) as (base_url, server):
                lines = turns(args, base_url, pool, server.pid)
        heads = ["rows/s alone", "rows/s watched", "ratio", "server per 1,000 requests alone", "watched"]
        heads += ["watching, a second", "opening a page", "looks", "refused", "p50", "p95", "events"]
        print(as_table(heads, lines), flush=True)
    if args.curve_steps:
        heads = ["steps", "domains", "points", "first looks", "longest", "later look", "after a restart"]
        print(as_table(heads, [curve_looks(args.curve_steps, each) for each in args.curve_domains]))
    if args.runs:
        print(as_table([f"list of {args.runs:,} runs", "first look", "later look"], list_looks(args.runs)))


if __name__ == "__main__":
    main()
