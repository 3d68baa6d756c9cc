"""Batches as JSON, for people."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from replay_service.wire.batches import Batch

_LEFT_OUT: Final = frozenset({"step", "length", "topk_ids", "topk_logprobs"})
"""Columns that are no part of a sample in JSON: it stands under its step, and is as long as its lists."""


def to_json(batch: Batch, texts: Sequence[str] | None) -> dict[str, Any]:
    """A batch as what json.dumps takes, with the text of each sample if there is one."""
    steps, text = [], iter(texts or ())
    for each in batch.header.steps:
        rows = batch.of_step(each.step)
        samples = [_sample(rows, i) | ({} if texts is None else {"text": next(text)}) for i in range(len(rows))]
        steps.append({**asdict(each), "samples": samples})
    return {**asdict(batch.header), "steps": steps}


def _sample(rows: Batch, i: int) -> dict[str, Any]:
    """The fields of a sample; of its tokens those that are real."""
    sample = {name: array[i].tolist() for name, array in rows.columns().items() if name not in _LEFT_OUT}
    length = int(rows.length[i])
    if "input_ids" in sample:
        del sample["input_ids"][length:]
    hits = np.unpackbits(rows.base_correct[i], bitorder="little").tolist()
    return {**sample, "base_correct": hits[:length] if rows.label is None else hits[0]}
