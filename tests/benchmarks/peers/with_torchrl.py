"""TorchRL's prioritized buffer: in process, in its own RayReplayBuffer, and in an actor of Ray that gives arrays.

Run by an interpreter that has torchrl and ray. Clients are threads of this process; Ray's processes serve.
"""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any, Protocol

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import ray
import torch
from tensordict import TensorDict
from torchrl.data import (
    LazyTensorStorage,
    PrioritizedSampler,
    RayReplayBuffer,
    TensorDictPrioritizedReplayBuffer,
    TensorDictReplayBuffer,
)
from turns import (
    ALPHA,
    BETA,
    ROWS,
    Way,
    answers,
    children_of,
    cpu_seconds_of,
    made_up_rows,
    new_priorities,
    serve_turns,
)

ACTOR = {"num_cpus": 1}


def tensors(num_rows: int) -> Iterator[TensorDict]:
    """The rows as TorchRL can hold them: it has no index_put for uint16, so ids are int16, the same bytes."""
    for rows in made_up_rows(num_rows):
        columns = {**rows, "input_ids": rows["input_ids"].view(np.int16)}
        yield TensorDict({name: torch.from_numpy(each) for name, each in columns.items()}, [len(rows["length"])])


def prioritized_buffer(num_rows: int) -> TensorDictPrioritizedReplayBuffer:
    buffer = TensorDictPrioritizedReplayBuffer(
        alpha=ALPHA, beta=BETA, storage=LazyTensorStorage(num_rows), batch_size=ROWS
    )
    for rows in tensors(num_rows):
        buffer.extend(rows)
    return buffer


def ray_buffer(num_rows: int) -> RayReplayBuffer:
    """Its actor takes no TensorDictPrioritizedReplayBuffer, which is this one with this sampler."""
    buffer = RayReplayBuffer(
        replay_buffer_cls=TensorDictReplayBuffer,
        remote_config=ACTOR,
        storage=partial(LazyTensorStorage, num_rows),
        sampler=partial(PrioritizedSampler, max_capacity=num_rows, alpha=ALPHA, beta=BETA),
        batch_size=ROWS,
    )
    for rows in tensors(num_rows):
        buffer.extend(rows)
    return buffer


class Buffer(Protocol):
    """What the three have in common."""

    def sample(self) -> Any: ...

    def update_priority(self, index: torch.Tensor, priority: torch.Tensor) -> None: ...


@dataclass(slots=True)
class Holder:
    """In an actor: arrays go through Ray without a copy of their own, which tensors do not."""

    num_rows: int
    _buffer: TensorDictPrioritizedReplayBuffer = field(init=False)

    def __post_init__(self) -> None:
        self._buffer = prioritized_buffer(self.num_rows)

    def sample(self) -> dict[str, np.ndarray]:
        return {name: each.numpy() for name, each in self._buffer.sample().items()}

    def update_priority(self, index: np.ndarray, priority: np.ndarray) -> None:
        self._buffer.update_priority(torch.from_numpy(index.copy()), torch.from_numpy(priority.copy()))


@dataclass(slots=True)
class HeldClient:
    """A client of a `Holder`."""

    holder: Any
    _rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))
    _batch: dict[str, np.ndarray] = field(default_factory=dict)

    def take(self) -> int:
        self._batch = ray.get(self.holder.sample.remote())
        return len(self._batch["input_ids"])

    def report(self) -> None:
        priorities = new_priorities(self._batch["base_loss"], self._rng)
        ray.get(self.holder.update_priority.remote(self._batch["index"], priorities))

    def close(self) -> None:
        pass


@dataclass(slots=True)
class TensorClient:
    """A client of a buffer that gives tensors, in process or not."""

    buffer: Buffer
    _rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))
    _batch: Any = None

    def take(self) -> int:
        self._batch = self.buffer.sample()
        return len(self._batch)

    def report(self) -> None:
        priorities = new_priorities(self._batch["base_loss"].numpy(), self._rng)
        self.buffer.update_priority(self._batch["index"], torch.from_numpy(priorities))

    def close(self) -> None:
        pass


def main() -> None:
    num_rows = int(sys.argv[1])
    with answers() as told:
        torch.set_num_threads(1)
        in_process = prioritized_buffer(num_rows)
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
        shipped = ray_buffer(num_rows)
        holder = ray.remote(**ACTOR)(Holder).remote(num_rows)
        ray.get(holder.sample.remote())
        ways = {
            "in process": Way(lambda _: [TensorClient(in_process)], time.process_time),
            "RayReplayBuffer": Way(lambda num: [TensorClient(each) for each in shipped.clients(num)], seconds_of_ray),
            "actor": Way(lambda num: [HeldClient(holder) for _ in range(num)], seconds_of_ray),
        }
        serve_turns(ways, [f"{name} {version(name)}" for name in ("torchrl", "torch", "ray")], told)


def seconds_of_ray() -> float:
    """CPU seconds of all of Ray's processes."""
    return cpu_seconds_of(*children_of(os.getpid()))


if __name__ == "__main__":
    main()
