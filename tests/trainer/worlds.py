"""A corpus that fits the tiny model, text to tune it on, and a job."""

import contextlib
import copy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from replay_service.language.tokenizer import fingerprint, load_tokenizer
from tests.support import make_corpus
from trainer.config import TrainConfig

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
