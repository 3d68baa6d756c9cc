"""Shards to ingest, and rows to write down."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from replay_service.corpus.segments import SampleRows


def write_jsonl(path: Path, texts: Iterable[object], column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
    return path


def sentences(domain: str, count: int) -> list[str]:
    """Documents of different lengths, no two alike."""
    return [f"{domain} {i}: the cat of number {i * i} sat on the mat. " * (1 + i % 4) for i in range(count)]


def random_rows(num_rows: int, seq_len: int = 12, seed: int = 0) -> SampleRows:
    rng = np.random.default_rng(seed)
    return SampleRows(
        input_ids=rng.integers(0, 300, (num_rows, seq_len)).astype(np.uint16),
        length=rng.integers(2, seq_len + 1, num_rows).astype(np.int32),
        base_loss=rng.gamma(4.0, 1.0, num_rows).astype(np.float32),
        base_correct=rng.integers(0, 256, (num_rows, -(-seq_len // 8))).astype(np.uint8),
        stratum=np.sort(rng.integers(0, 4, num_rows)).astype(np.int32),
    )


def same_rows(left: SampleRows, right: SampleRows) -> bool:
    mine, theirs = left.columns(), right.columns()
    return mine.keys() == theirs.keys() and all(
        mine[name].dtype == theirs[name].dtype and np.array_equal(mine[name], theirs[name]) for name in mine
    )
