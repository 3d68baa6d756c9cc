"""What serving batches costs, as ratios to a bare server: `python -m tests.benchmarks.serving`.

README.md in this folder says what each ratio means.
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import httpx2

from tests.benchmarks.ratios import as_table, repeated
from tests.benchmarks.serving_clients import ROWS, Measured, Work, measure
from tests.support import free_port, make_corpus, running_service

SEQ_LEN: Final = 1024
NUM_PREPARED_STEPS: Final = 128
FLOORS: Final = ("floor", "floor that gathers rows")
WAYS: Final = (*FLOORS, "plans that exist", "new plans", "new plans, losses reported")
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Server:
    """A server process and where it listens."""

    port: int
    pid: int

    def cpu_seconds(self) -> float:
        """What the process and its children have used so far, in user and system mode."""
        return sum(_cpu_seconds(pid) for pid in [self.pid, *_children(self.pid)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rows", type=int, default=32_768, help="of the corpus, 2.2 KB each")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 16], help="of one request")
    parser.add_argument("--gateways", type=int, default=1, help="processes of the service")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        root = Path(folder)
        make_corpus(root / "corpora", rows_per_domain=wanted.rows // 2, rows_per_segment=8192, seq_len=SEQ_LEN)
        options = ["--gateways", str(wanted.gateways)] if wanted.gateways > 1 else []
        with running_service(root, options=[*options, "--log-level", "warning"]) as (url, process):
            own = Server(int(url.rpartition(":")[2]), process.pid)
            for num_steps in wanted.steps:
                segment = next((root / "corpora").rglob("*.arrow"))
                with bare_server(body_bytes(own, pool, num_steps), ROWS * num_steps, segment) as bare:
                    bench = Bench(own, bare, pool, num_steps, wanted.seconds)
                    print(f"{num_steps} steps a request", bench.table(wanted.clients, wanted.repeats), sep="\n\n")


@dataclass(frozen=True, slots=True)
class Bench:
    """The service and the bare server, what a request asks for, and how long one measurement takes."""

    own: Server
    bare: Server
    pool: ProcessPoolExecutor
    num_steps: int
    seconds: float

    def table(self, clients: Sequence[int], repeats: int) -> str:
        """Rows a second of every way at every number of clients, against the bare server."""
        head = ["clients", "what", "rate", "ratio", "p50", "p99", "server CPU a million rows", "ratio"]
        rows = []
        for num_clients in clients:
            turns: list[list[Turn]] = repeated(repeats, [partial(self.turn, way, num_clients) for way in WAYS])
            for way, mine in zip(WAYS, turns, strict=True):
                rows.append([str(num_clients), way, *cells(mine, turns[0])])
        return as_table(head, rows)

    def turn(self, way: str, num_clients: int) -> "Turn":
        is_bare = way in FLOORS
        server = self.bare if is_bare else self.own
        run = way.replace(" ", "-") if is_bare else new_run(self.own, num_clients)
        work = Work(server.port, way, num_clients, run, self.seconds, NUM_PREPARED_STEPS, self.num_steps)
        if not is_bare:
            self.pool.submit(measure, work.prepared()).result()
        before = server.cpu_seconds()
        measured: Measured = self.pool.submit(measure, work).result()
        cpu = server.cpu_seconds() - before
        return Turn(measured.num_rows / measured.seconds, measured.p50, measured.p99, cpu / measured.num_rows)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one measurement gave: rows a second, seconds an answer at two quantiles, CPU seconds a row."""

    rate: float
    p50: float
    p99: float
    cpu: float


def cells(own: Sequence[Turn], floor: Sequence[Turn]) -> Iterator[str]:
    """The median of each number; for rate and CPU, also the ratio to the floor in the same round, least to most."""
    yield f"{statistics.median(each.rate for each in own):,.0f} rows/s"
    yield _ratio([each.rate / other.rate for each, other in zip(own, floor, strict=True)])
    for name in ("p50", "p99"):
        yield f"{1000 * statistics.median(getattr(each, name) for each in own):.2f} ms"
    yield f"{1e6 * statistics.median(each.cpu for each in own):.1f} s"
    yield _ratio([each.cpu / other.cpu for each, other in zip(own, floor, strict=True)])


def _ratio(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def new_run(server: Server, num_clients: int) -> str:
    """A run whose steps rehearse 64 rows for each client, and that draws them by damage."""
    run = f"run-{time.time_ns()}"
    settings = {"global_batch_size": ROWS * num_clients, "injection_ratio": "1", "policy": "mix_cd"}
    # Where nobody reports for long, the state of the run would grow with plans that wait for reports.
    window = {"report_window_steps": 2 * NUM_PREPARED_STEPS}
    body = {"run": run, "corpus": "wiki", **settings, **window}
    httpx2.post(f"http://127.0.0.1:{server.port}/v1/runs", json=body).raise_for_status()
    return run


def body_bytes(server: Server, pool: ProcessPoolExecutor, num_steps: int) -> int:
    """The size of an answer."""
    work = Work(server.port, "plans that exist", 1, new_run(server, 1), 1.0, num_steps, num_steps)
    measured: Measured = pool.submit(measure, work.prepared()).result()
    return measured.body_bytes


# The bare server


@contextmanager
def bare_server(num_bytes: int, num_rows: int, segment: Path) -> Iterator[Server]:
    """The same uvicorn under the same options, around a constant, or around so many rows of a file."""
    port = free_port()
    told = (port, num_bytes, num_rows, segment)
    command = [sys.executable, "-m", "tests.benchmarks.serving_floor", *map(str, told)]
    with subprocess.Popen(command) as process:
        try:
            while not _answers(port):
                if process.poll() is not None:
                    raise RuntimeError(f"the bare server ended with exit status {process.returncode}")
                time.sleep(0.05)
            yield Server(port, process.pid)
        finally:
            process.terminate()


def _answers(port: int) -> bool:
    try:
        httpx2.get(f"http://127.0.0.1:{port}/healthz")
    except httpx2.TransportError:
        return False
    return True


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(each) for each in found]


if __name__ == "__main__":
    main()
