"""What planning, reporting and restoring cost, as ratios within one run: `python -m tests.benchmarks.ledger`.

README.md in this folder says what each ratio means.
"""

import argparse
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

import numpy as np
from fastapi.testclient import TestClient

from replay_service.corpus.reading.reader import Corpus
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import RunOwner
from replay_service.ledger.records import RunRecord
from replay_service.sampling.events import REPORTED_ROW, Created, Planned
from replay_service.sampling.fold import fold, fold_all
from replay_service.sampling.partition import Extent, Partition
from replay_service.sampling.plan import plan_steps
from replay_service.sampling.run_config import RunConfig
from replay_service.sampling.run_state import RunState
from replay_service.wire.losses import LOSS_ROW
from tests.benchmarks.ratios import as_table, measured, repeated
from tests.gateway.worlds import client_on
from tests.ledger.worlds import open_journal, owner_of, record_of
from tests.sampling.worlds import report_of
from tests.support import make_corpus

MOST_ROWS: Final = 2**31
"""Of one segment."""

TABLES: Final = ("planning", "reporting", "covering", "restoring", "listing")

ROWS_A_REPORT: Final = 64
NUM_RANKS: Final = 8
STEPS_A_REPORT: Final = (1, 4, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--events", type=int, nargs="+", default=[10**3, 10**4, 10**5])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_corpus(root, rows_per_domain=50_000, rows_per_segment=50_000, num_quantiles=8)
        corpus = Corpus(root / "wiki")
        make = {
            "planning": lambda: planning(wanted.repeats),
            "reporting": lambda: reporting(root, corpus, wanted.repeats),
            "covering": lambda: covering(root, corpus, wanted.repeats),
            "restoring": lambda: restoring(root, corpus, wanted.repeats, wanted.events),
            "listing": lambda: listing(root, corpus, wanted.repeats),
        }
        for name in wanted.tables:
            print(make[name](), end="\n\n", flush=True)


# Planning


def planning(repeats: int, steps: int = 192) -> str:
    """A step of 64 draws, planned and folded in alone or among 16, against one alone at 10^6 samples in 64 strata."""
    cases = [(num, 64) for num in (10**6, 10**9, 10**12)] + [(10**6, num) for num in (1000, 10_000)]
    cases += [(10**12, 10_000)]
    worlds = [(partition, warm_state(partition)) for partition in (partition_of(*case) for case in cases)]
    ways = [(case, world, window) for window in (1, 16) for case, world in zip(cases, worlds, strict=True)]
    seconds = repeated(repeats, [partial(seconds_a_step, *world, steps, window) for _, world, window in ways])
    rows = [
        [f"{samples:.0e}", f"{strata:,}", f"{len(world[0].extents):,}", str(window), *measured(own, seconds[0], "ms")]
        for ((samples, strata), world, window), own in zip(ways, seconds, strict=True)
    ]
    return as_table(["samples", "strata", "extents", "steps at once", "a step", "ratio"], rows)


def partition_of(num_samples: int, num_strata: int) -> Partition:
    """Strata of equal size laid end to end through as few segments as hold them; one that spans segments is cut."""
    ends = [num_samples * (k + 1) // num_strata for k in range(num_strata)]
    extents, first = [], 0
    for stratum, end in enumerate(ends):
        while first < end:
            segment, row = divmod(first, MOST_ROWS)
            num_rows = min(end - first, MOST_ROWS - row)
            extents.append(Extent(stratum, segment, row, num_rows))
            first += num_rows
    return Partition(("all",), num_strata, tuple(extents))


def warm_state(partition: Partition) -> RunState:
    """The state of a run that has had reports, so that its probabilities differ."""
    config = RunConfig(global_batch_size=256, injection_ratio="0.25", report_window_steps=16)
    state = RunState.initial(Created(config, 1, partition.num_quantiles, tuple(partition.sizes.tolist())))
    for plan in plan_steps(state, partition, 9):
        fold(state, plan)
        ids = np.unique(plan.rows["sample_id"])
        fold(state, report_of(plan.step, ids, num_flips=(ids % 7).tolist()))
    return state


def seconds_a_step(partition: Partition, state: RunState, steps: int, at_once: int) -> float:
    begin = time.perf_counter()
    for _ in range(0, steps, at_once):
        fold_all(state, plan_steps(state, partition, state.next_step + at_once - 1))
    return (time.perf_counter() - begin) / steps


# Reporting


def reporting(root: Path, corpus: Corpus, repeats: int, num_reports: int = 400) -> str:
    """Losses made durable a second, against bare inserts of the same bytes with a commit for each report."""
    numbers = count()
    ways: list[Callable[[], float]] = [
        lambda: bare_rate(root / f"bare-{next(numbers)}", num_reports),
        lambda: owner_rate(root / f"owner-{next(numbers)}", corpus, num_reports, 1),
        lambda: owner_rate(root / f"owner-{next(numbers)}", corpus, num_reports, NUM_RANKS),
    ]
    bare, *owned = repeated(repeats, ways)
    rows = [["bare inserts, 1 thread", *measured(bare, bare, "losses/s")]]
    for own, threads in zip(owned, ("1 thread", f"{NUM_RANKS} threads"), strict=True):
        rows.append([f"RunOwner.report, {threads}", *measured(own, bare, "losses/s")])
    return as_table(["what", "rate", "ratio"], rows)


def owner_rate(path: Path, corpus: Corpus, num_reports: int, num_threads: int) -> float:
    """Losses a second when the ranks' reports, one step each, come from `num_threads` threads."""
    with open_journal(path) as journal:
        journal.create_run(record_on(corpus, global_batch_size=4 * NUM_RANKS * ROWS_A_REPORT))
        owner = owner_of(journal, corpus)
        steps = owner.window(0, num_reports // NUM_RANKS, 1 << 20).plans
        of_ranks = [[losses_of(plan, rank, NUM_RANKS) for plan in steps] for rank in range(NUM_RANKS)]
        shares = [[rows for rank in of_ranks[i::num_threads] for rows in rank] for i in range(num_threads)]
        with ThreadPoolExecutor(num_threads) as threads:
            begin = time.perf_counter()
            accepted = sum(threads.map(lambda share: report_all(owner, share), shares))
            return accepted / (time.perf_counter() - begin)


def record_on(corpus: Corpus, run: str = "tuning", **config: object) -> RunRecord:
    sizes = corpus.partition.sizes.tolist()
    return record_of(run, sizes, num_quantiles=corpus.partition.num_quantiles, **config)


def losses_of(plan: Planned, rank: int = 0, num_ranks: int = 1) -> np.ndarray:
    """What a rank, one of `num_ranks`, reports of a plan: LOSS_ROW [n]."""
    ids = plan.rows["sample_id"][rank::num_ranks]
    rows = np.zeros(len(ids), dtype=LOSS_ROW)
    rows["step"], rows["rank"], rows["sample_id"] = plan.step, rank, ids
    rows["loss_nats"], rows["num_tokens"], rows["num_flips"] = 2.5, 11, ids % 5
    return rows


def report_all(owner: RunOwner, reports: Sequence[np.ndarray]) -> int:
    return sum(owner.report(rows).accepted for rows in reports)


def bare_rate(path: Path, num_reports: int) -> float:
    """Losses a second of a table like the journal's, under the journal's pragmas."""
    with closing(sqlite3.connect(path)) as connection:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")
        columns = "run TEXT, seq INTEGER, attempt INTEGER, kind TEXT, step INTEGER, rank INTEGER, payload BLOB"
        connection.execute(f"CREATE TABLE events ({columns}, PRIMARY KEY (run, seq))")
        payload = np.zeros(ROWS_A_REPORT, dtype=REPORTED_ROW).tobytes()
        begin = time.perf_counter()
        for seq in range(num_reports):
            row = ("tuning", seq, 1, "reported", seq // NUM_RANKS, seq % NUM_RANKS, payload)
            connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            connection.commit()
        return num_reports * ROWS_A_REPORT / (time.perf_counter() - begin)


# Covering several steps


def covering(root: Path, corpus: Corpus, repeats: int, num_steps: int = 480) -> str:
    """A row of a report that covers several steps of 64 rows, made durable, against one of a report of one step."""
    numbers = count()
    ways = [
        lambda at_once=at_once: seconds_a_row(root / f"covering-{next(numbers)}", corpus, num_steps, at_once)
        for at_once in STEPS_A_REPORT
    ]
    seconds = repeated(repeats, ways)
    rows = [
        [str(at_once), f"{at_once * ROWS_A_REPORT:,}", *measured(own, seconds[0], "ms")]
        for at_once, own in zip(STEPS_A_REPORT, seconds, strict=True)
    ]
    return as_table(["steps of a report", "rows", "a row", "ratio"], rows)


def seconds_a_row(path: Path, corpus: Corpus, num_steps: int, at_once: int) -> float:
    with open_journal(path) as journal:
        journal.create_run(record_on(corpus, global_batch_size=4 * ROWS_A_REPORT))
        owner = owner_of(journal, corpus)
        losses = [losses_of(plan) for plan in owner.window(0, num_steps, 1 << 20).plans]
        reports = [np.concatenate(losses[first : first + at_once]) for first in range(0, num_steps, at_once)]
        begin = time.perf_counter()
        accepted = report_all(owner, reports)
        return (time.perf_counter() - begin) / accepted


# Restoring


def restoring(root: Path, corpus: Corpus, repeats: int, lengths: Sequence[int]) -> str:
    """Opening the owner of a run, against the one with the shortest history."""
    names = [f"of-{length}" for length in lengths]
    with open_journal(root / "histories") as journal:
        for name, length in zip(names, lengths, strict=True):
            journal.create_run(record_on(corpus, name))
            write_history(owner_of(journal, corpus, name), journal, length)
        ways = [lambda name=name: seconds_to_restore(journal, corpus, name) for name in names]
        seconds = repeated(repeats, ways)
        snapshots = [journal.latest_snapshot(name, journal.end_seq(name)) for name in names]
    rows = [
        [f"{length:,}", f"{length - (0 if snapshot is None else snapshot.seq):,}", *measured(own, seconds[0], "ms")]
        for length, snapshot, own in zip(lengths, snapshots, seconds, strict=True)
    ]
    return as_table(["events", "of them after the snapshot", "restore", "ratio"], rows)


def write_history(owner: RunOwner, journal: Journal, num_events: int, at_once: int = 20) -> None:
    """Plans and reports in turn, `at_once` steps in each request."""
    num_steps = num_events // 2
    for first in range(0, num_steps, at_once):
        plans = owner.window(first, min(at_once, num_steps - first), 1 << 20).plans
        owner.report(np.concatenate([losses_of(plan) for plan in plans]))
    assert journal.num_events(owner.record.run) == num_events + 1


def seconds_to_restore(journal: Journal, corpus: Corpus, name: str) -> float:
    begin = time.perf_counter()
    owner_of(journal, corpus, name)
    return time.perf_counter() - begin


# Listing


def listing(root: Path, corpus: Corpus, repeats: int, numbers: Sequence[int] = (10, 100, 1000)) -> str:
    """`GET /v1/runs` of a service, against the one with the fewest runs."""
    with ExitStack() as stack:
        ways = [partial(seconds_to_list, stack.enter_context(client_with_runs(root, corpus, num))) for num in numbers]
        seconds = repeated(repeats, ways)
    rows = [[f"{num:,}", *measured(own, seconds[0], "ms")] for num, own in zip(numbers, seconds, strict=True)]
    return as_table(["runs", "the list of them", "ratio"], rows)


@contextmanager
def client_with_runs(root: Path, corpus: Corpus, num_runs: int) -> Iterator[TestClient]:
    """A client of a service with so many runs, each of which has planned and reported ten steps."""
    folder = root / f"service-{num_runs}"
    folder.mkdir()
    with open_journal(folder / "journal.sqlite") as journal:
        for i in range(num_runs):
            journal.create_run(record_on(corpus, f"run-{i:04}"))
            write_history(owner_of(journal, corpus, f"run-{i:04}"), journal, 20)
    with client_on(folder) as client:
        yield client


def seconds_to_list(client: TestClient) -> float:
    begin = time.perf_counter()
    client.get("/v1/runs").raise_for_status()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
