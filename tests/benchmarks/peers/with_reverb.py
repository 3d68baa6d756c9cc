"""DeepMind's Reverb: a server in a process of its own, clients on threads of this one. Run by its own interpreter."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from typing import Any, Final

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import portpicker
import reverb
import tensorflow as tf
from turns import ALPHA, ROWS, SEQ_LEN, Way, answers, cpu_seconds_of, made_up_rows, new_priorities, serve_turns

TABLE: Final = "rows"
IN_FLIGHT: Final = 2 * ROWS
"""Two or three times the batch, as its documentation advises."""


def num_workers(num_clients: int) -> int:
    """About as many as cores, as its documentation advises, among all clients; more are slower."""
    return max(1, (os.cpu_count() or 1) // num_clients)


def serve(port: int, max_size: int) -> None:
    """The server, until standard input ends."""
    signature = {
        "input_ids": tf.TensorSpec([SEQ_LEN], tf.uint16),
        "length": tf.TensorSpec([], tf.int32),
        "base_loss": tf.TensorSpec([], tf.float32),
        "base_correct": tf.TensorSpec([SEQ_LEN // 8], tf.uint8),
        "stratum": tf.TensorSpec([], tf.int32),
    }
    table = reverb.Table(
        TABLE,
        sampler=reverb.selectors.Prioritized(ALPHA),
        remover=reverb.selectors.Uniform(),
        max_size=max_size,
        rate_limiter=reverb.rate_limiters.MinSize(1),
        signature=signature,
    )
    server = reverb.Server([table], port=port)
    sys.stdin.read()
    server.stop()


@contextmanager
def running_server(num_rows: int) -> Iterator[tuple[str, int]]:
    """A server that holds so many rows: its address and its process."""
    port = portpicker.pick_unused_port()
    command = [sys.executable, __file__, "serve", str(port), str(num_rows)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2) as process:
        address = f"127.0.0.1:{port}"
        fill(reverb.Client(address), num_rows)
        yield address, process.pid
        process.communicate()


def fill(client: reverb.Client, num_rows: int) -> None:
    """An item of one step for each row, by the priority that its base loss gives."""
    client.server_info(timeout=60)
    with client.trajectory_writer(num_keep_alive_refs=1) as writer:
        for rows in made_up_rows(num_rows, at_once=16):
            for i in range(len(rows["length"])):
                writer.append({name: column[i] for name, column in rows.items()})
                step = {name: column[-1] for name, column in writer.history.items()}
                writer.create_item(TABLE, float(rows["base_loss"][i]), step)
            writer.flush()


@dataclass(slots=True)
class Sampler:
    """Batches come from a TimestepDataset, which its documentation prefers to Client.sample; it fetches ahead."""

    address: str
    num_workers: int
    _client: reverb.Client = field(init=False)
    _batches: Any = field(init=False)
    _batch: Any = field(init=False)
    _rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))

    def __post_init__(self) -> None:
        self._client = reverb.Client(self.address)
        dataset = reverb.TimestepDataset.from_table_signature(
            self.address,
            TABLE,
            max_in_flight_samples_per_worker=IN_FLIGHT,
            num_workers_per_iterator=self.num_workers,
        )
        self._batches = dataset.batch(ROWS, drop_remainder=True).as_numpy_iterator()

    def take(self) -> int:
        self._batch = next(self._batches)
        return len(self._batch.data["input_ids"])

    def report(self) -> None:
        priorities = new_priorities(self._batch.data["base_loss"], self._rng)
        updates = zip(self._batch.info.key.tolist(), priorities.tolist(), strict=True)
        self._client.mutate_priorities(TABLE, updates=dict(updates))

    def close(self) -> None:
        """It stays for the next turn: that of a dataset now and then waits for ever."""


def main() -> None:
    with answers() as told:
        versions = [f"{name} {version(name)}" for name in ("dm-reverb", "tensorflow-cpu", "grpcio")]
        with running_server(int(sys.argv[1])) as (address, pid):
            way = Way(partial(samplers, address), lambda: cpu_seconds_of(pid))
            serve_turns({"served": way}, versions, told)
        # What ends datasets now and then waits for ever.
        os._exit(0)


@cache
def samplers(address: str, num_clients: int) -> list[Sampler]:
    return [Sampler(address, num_workers(num_clients)) for _ in range(num_clients)]


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
