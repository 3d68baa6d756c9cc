"""The clients of `tests.benchmarks.serving`: threads of one process, each with one connection that it keeps.

They speak just enough HTTP, so that the server is what is measured.
"""

import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from replay_service.wire.batches import decode_batch
from replay_service.wire.decoding import Heads
from replay_service.wire.losses import LOSS_ROW, encode_losses
from replay_service.wire.protocol import ARROW_STREAM

ROWS: Final = 64
"""Of a step, for one rank."""


@dataclass(frozen=True, slots=True)
class Work:
    """What the clients shall do: as many ranks of one job, for some seconds, or through some steps once."""

    port: int
    way: str
    num_clients: int
    run: str
    seconds: float
    num_prepared: int
    num_steps: int = 1
    """Of one request."""
    is_preparing: bool = False
    rows: int = ROWS
    """Of a step, for one rank."""
    training_s: float = 0.0
    """What a client trains between a batch and its report, seconds."""

    def prepared(self) -> "Work":
        """To have steps planned and reported, so that the run knows of damage."""
        return replace(self, is_preparing=True, training_s=0.0)

    @property
    def reports(self) -> bool:
        return self.is_preparing or "reported" in self.way

    def steps(self) -> Iterator[int]:
        """The first steps of the windows that a rank asks for, one after the other."""
        prepared = range(0, self.num_prepared, self.num_steps)
        if self.is_preparing:
            yield from prepared
        elif "new" in self.way:
            yield from itertools.count(self.num_prepared, self.num_steps)
        else:
            yield from itertools.cycle(prepared)


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of it: rows in all, the time it took, and the time an answer took at two quantiles, in seconds."""

    num_rows: int
    seconds: float
    p50: float
    p99: float
    body_bytes: int


@dataclass(slots=True)
class Connection:
    """Posts bodies over one connection; `receive` gives a view that holds until the next post."""

    port: int
    _socket: socket.socket = field(init=False)
    _buffer: bytearray = field(init=False, default_factory=lambda: bytearray(1 << 23))

    def __post_init__(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._socket.close()

    def post(self, path: str, content_type: str, body: bytes) -> memoryview:
        """The body of the answer.

        Raises:
            AssertionError: when it is no 200.
        """
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n"
        self._socket.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        view = memoryview(self._buffer)
        end = received = 0
        while not end:
            received += self._more(view[received:])
            end = self._buffer.find(b"\r\n\r\n", 0, received) + 4
            end = 0 if end < 4 else end
        answer_head = bytes(view[:end])
        length = int(answer_head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        while received < end + length:
            received += self._more(view[received : end + length])
        assert answer_head.startswith(b"HTTP/1.1 200"), bytes(view[:received])
        return view[end : end + length]

    def _more(self, view: memoryview) -> int:
        num_bytes = self._socket.recv_into(view)
        assert num_bytes, "the server closed the connection"
        return num_bytes


def measure(work: Work) -> Measured:
    """Let all clients begin at once, and put what they measured together."""
    barrier = threading.Barrier(work.num_clients)
    times: list[list[float]] = [[] for _ in range(work.num_clients)]
    sizes = [0] * work.num_clients
    failures: list[BaseException] = []

    def of_rank(rank: int) -> None:
        try:
            sizes[rank] = _client(work, rank, barrier.wait, times[rank])
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=of_rank, args=(rank,)) for rank in range(work.num_clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    if failures:
        raise failures[0]
    every = np.concatenate(times)
    p50, p99 = np.quantile(every, [0.5, 0.99]).tolist()
    return Measured(work.rows * work.num_steps * len(every), seconds, p50, p99, max(sizes))


def _client(work: Work, rank: int, wait: Callable[[], int], times: list[float]) -> int:
    """Ask for the rank's rows step by step, and report them if that is wanted; gives the size of an answer."""
    connection = Connection(work.port)
    heads = Heads()
    size, deadline = 0, time.perf_counter() + work.seconds
    asked = {"rank": rank, "world_size": work.num_clients}
    wait()
    for step in work.steps():
        begin = time.perf_counter()
        if not work.is_preparing and begin >= deadline:
            break
        body = json.dumps({"step": step, "num_steps": work.num_steps, **asked}).encode()
        answer = connection.post(f"/v1/runs/{work.run}/batches", "application/json", body)
        times.append(time.perf_counter() - begin)
        size = len(answer)
        if work.training_s:
            time.sleep(work.training_s)
        if work.reports:
            connection.post(f"/v1/runs/{work.run}/losses", ARROW_STREAM, _losses(bytes(answer), rank, heads))
    connection.close()
    return size


def _losses(answer: bytes, rank: int, heads: Heads) -> bytes:
    """A report of a batch: the higher the stratum, the more flips."""
    batch = decode_batch(answer, heads=heads)
    rows = np.zeros(len(batch), dtype=LOSS_ROW)
    rows["step"], rows["sample_id"], rows["rank"] = batch.step, batch.sample_id, rank
    rows["loss_nats"], rows["num_tokens"], rows["num_flips"] = 2.5, 1023, 100 * batch.stratum
    return bytes(encode_losses(rows))
