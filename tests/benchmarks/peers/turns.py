"""What every side of `tests.benchmarks.peers` shares: made-up rows, clients that take turns, and how a turn is told.

The scripts of the peers run this by interpreters of their own, so it needs numpy and the standard library alone.

A script prints a line of JSON when it is ready, then answers each line of JSON on its standard input, a turn, with one.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TextIO

import numpy as np

ROWS: Final = 64
"""Of one batch."""
SEQ_LEN: Final = 1024
VOCAB_SIZE: Final = 32_768
"""So that ids are the same bytes as signed integers of two bytes, which some peers need."""
NUM_STRATA: Final = 4
ALPHA: Final = 0.6
BETA: Final = 0.4
"""The exponents of priorities and of their correction in Schaul et al., "Prioritized Experience Replay", 2016."""

_WARM_UP_S: Final = 1.0
"""At most; a shorter turn warms up for as long as it takes."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Client(Protocol):
    """One that takes batches and reports losses, on a thread of its own."""

    def take(self) -> int:
        """Get what one request gives; the number of its rows."""
        ...

    def report(self) -> None:
        """Report each row of what was just taken; when this returns the server has taken it in."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Way:
    """One way to serve.

    Attributes:
        make_clients: as many clients as are asked for.
        cpu_seconds: what the processes that serve have used so far, in user and system mode.
    """

    make_clients: Callable[[int], Sequence[Client]]
    cpu_seconds: Callable[[], float]


def made_up_rows(num_rows: int, at_once: int = 1024) -> Iterator[dict[str, np.ndarray]]:
    """Random rows of 2,188 bytes, as columns: input_ids uint16 [n, 1024], length int32 [n], base_loss float32 [n],
    base_correct uint8 [n, 128], stratum int32 [n]."""
    rng = np.random.default_rng(0)
    for first in range(0, num_rows, at_once):
        n = min(at_once, num_rows - first)
        yield {
            "input_ids": rng.integers(1, VOCAB_SIZE, (n, SEQ_LEN), dtype=np.uint16),
            "length": np.full(n, SEQ_LEN, np.int32),
            "base_loss": rng.gamma(4.0, 1.0, n).astype(np.float32),
            "base_correct": rng.integers(0, 256, (n, SEQ_LEN // 8), dtype=np.uint8),
            "stratum": rng.integers(0, NUM_STRATA, n, dtype=np.int32),
        }


def new_priorities(base_loss: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Priorities [n] of rows whose losses have changed since they were written."""
    return base_loss.reshape(-1) * rng.random(base_loss.size, dtype=np.float32) + np.float32(0.1)


@contextmanager
def answers() -> Iterator[TextIO]:
    """Standard output for answers alone: what libraries print, also those not in Python, goes to standard error."""
    with os.fdopen(os.dup(1), "w", buffering=1) as told:
        os.dup2(2, 1)
        yield told


def serve_turns(ways: Mapping[str, Way], versions: Sequence[str], told: TextIO) -> None:
    """Measure the ways that standard input asks for, until it ends; `versions` are such as "cpprb 11.0.0"."""
    print(json.dumps({"versions": list(versions)}), file=told)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(one_turn(ways[asked["way"]], asked["clients"], asked["seconds"])), file=told)


def one_turn(way: Way, num_clients: int, seconds: float) -> dict[str, Any]:
    """Let clients take and report for so long, after some of the same that does not count.

    Counted are rows whose report was taken in while it counts. A latency is what a batch of `ROWS` took, seconds, from
    the request for it until its report was taken in; of several batches that come by one request, their mean.
    """
    clients = way.make_clients(num_clients)
    done: list[tuple[float, float, int]] = []
    failures: list[BaseException] = []
    stop = threading.Event()
    threads = [threading.Thread(target=_go_on, args=(each, stop, done, failures)) for each in clients]
    for thread in threads:
        thread.start()
    try:
        stop.wait(min(_WARM_UP_S, seconds))
        begin, cpu_before = time.perf_counter(), way.cpu_seconds()
        stop.wait(seconds)
        end, cpu = time.perf_counter(), way.cpu_seconds() - cpu_before
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for client in clients:
            client.close()
    if failures:
        raise failures[0]
    return _summary([each for each in done if begin <= each[0] < end], end - begin, cpu)


def _go_on(
    client: Client, stop: threading.Event, done: list[tuple[float, float, int]], failures: list[BaseException]
) -> None:
    try:
        while not stop.is_set():
            begin = time.perf_counter()
            num_rows = client.take()
            client.report()
            end = time.perf_counter()
            done.append((end, (end - begin) * ROWS / num_rows, num_rows))
    except BaseException as error:
        failures.append(error)
        stop.set()


def _summary(done: Sequence[tuple[float, float, int]], seconds: float, cpu: float) -> dict[str, Any]:
    if not done:
        raise RuntimeError(f"no batch came in {seconds:.1f} s; measure for longer")
    num_rows = sum(each[2] for each in done)
    p50, p99 = np.quantile([each[1] for each in done], [0.5, 0.99]).tolist()
    return {"rate": num_rows / seconds, "p50": p50, "p99": p99, "cpu": cpu / num_rows}


def cpu_seconds_of(*pids: int) -> float:
    """What processes and those that they started, as far as they run, have used so far, in user and system mode."""
    return sum(_own_cpu_seconds(pid) + cpu_seconds_of(*children_of(pid)) for pid in pids)


def children_of(pid: int) -> list[int]:
    """The processes that the threads of a process started."""
    try:
        tasks = [each.read_text().split() for each in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for task in tasks for child in task]


def _own_cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS
