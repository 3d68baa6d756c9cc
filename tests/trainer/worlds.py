"""A corpus that fits the tiny model, text to tune it on, and a job."""

import contextlib
import copy
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from replay_service.language.precision import Precision
from replay_service.language.tokenizer import fingerprint, load_tokenizer
from replay_trainer.config import TrainConfig
from replay_trainer.job.loop import fine_tune
from tests.support import make_corpus

SEQ_LEN = 12


class AloneWorker:
    """A job of one process, without Ray; it keeps its checkpoint in memory."""

    rank = 0
    world_size = 1
    device = torch.device("cpu")

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        self.state = state
        torch.set_num_threads(1)

    def wrap(self, model: Any) -> Any:
        return model

    def without_averaging(self, model: Any) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def restore(self) -> dict[str, Any] | None:
        return self.state

    def save(self, state: dict[str, Any], step: int) -> None:
        self.state = copy.deepcopy(state)


class _TogetherWorker(AloneWorker):
    """One rank of a job whose ranks are threads; gradients are averaged in the backward pass, as Ray Train's are."""

    def __init__(self, rank: int, shared: list[torch.Tensor], barrier: threading.Barrier, state: Any) -> None:
        super().__init__(state)
        self.rank, self.world_size = rank, len(shared)
        self._shared, self._barrier, self._averages = shared, barrier, True
        self.has_loaded = threading.Event()

    def wrap(self, model: Any) -> Any:
        def average(parameter: torch.Tensor) -> None:
            if self._averages:
                assert parameter.grad is not None
                self.sum_over_ranks(parameter.grad).div_(self.world_size)

        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(average)
        self.has_loaded.set()
        return model

    @contextlib.contextmanager
    def without_averaging(self, model: Any) -> Iterator[None]:
        self._averages = False
        yield
        self._averages = True

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        self._shared[self.rank] = values.clone()
        self._barrier.wait()
        values.copy_(torch.stack(self._shared).sum(dim=0))
        self._barrier.wait()
        return values


def train_together(
    config: TrainConfig, precision: Precision, world_size: int, state: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """Train with several ranks in this process, perhaps from a checkpoint; gives the last one that was saved."""
    barrier, shared = threading.Barrier(world_size), [torch.empty(0)] * world_size
    workers = [_TogetherWorker(rank, shared, barrier, copy.deepcopy(state)) for rank in range(world_size)]

    def run(worker: _TogetherWorker) -> None:
        try:
            fine_tune(config, precision, worker)
        except BaseException:
            barrier.abort()
            raise
        finally:
            worker.has_loaded.set()

    outcomes = []
    with ThreadPoolExecutor(world_size) as pool:
        for worker in workers:
            outcomes.append(pool.submit(run, worker))
            # While it loads a model transformers exchanges what is in torch.nn.init; two at once would leave it so.
            worker.has_loaded.wait()
    errors = [each.exception() for each in outcomes]
    for error in sorted(
        (each for each in errors if each), key=lambda each: isinstance(each, threading.BrokenBarrierError)
    ):
        raise error
    return workers[0].state


def corpus_for(model: Path, root: Path, name: str = "wiki", topk: int = 0) -> None:
    """A corpus of random rows that has the tokenizer of `model`."""
    tokenizer = load_tokenizer(str(model))
    make_corpus(
        root / "corpora",
        name,
        topk=topk,
        seq_len=SEQ_LEN,
        vocab_size=len(tokenizer),
        tokenizer_fingerprint=fingerprint(tokenizer),
    )


def write_text(path: Path, num_documents: int = 30) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [f"number {i} sat on the mat and le chat number {i * i} est ici" for i in range(num_documents)]
    pq.write_table(pa.table({"text": texts}), path)
    return path


def a_job(folder: Path, model: Path, service_url: str | None, **changes: Any) -> TrainConfig:
    rehearsal = None
    if service_url is not None:
        ratio, policy = changes.pop("injection_ratio", "0.3"), changes.pop("policy", "uniform")
        rehearsal = {
            "service_url": service_url,
            "corpus": changes.pop("corpus", "wiki"),
            "run": changes.pop("run", "a-run"),
            "injection_ratio": ratio,
            "policy": policy,
            "window_steps": 3,
            **changes.pop("rehearsal", {}),
        }
    values = {
        "model": str(model),
        "output": folder,
        "num_steps": 10,
        "global_batch_size": 4,
        "learning_rate": 1e-3,
        "precision": "float32",
        "save_model": False,
        "data": {"target": write_text(folder / "text" / "stories.parquet"), "seq_len": SEQ_LEN},
        "rehearsal": rehearsal,
        **changes,
    }
    return TrainConfig.model_validate(values)
