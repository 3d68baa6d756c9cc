"""Batches as JSON, for people."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from replay_service.wire.arrow import Batch


def to_json(batch: Batch, texts: Sequence[str] | None) -> dict[str, Any]:
    """A batch as what json.dumps takes, with the text of each sample if there is one."""
    header = batch.header
    steps, text = [], iter(texts or ())
    for each in header.steps:
        rows = batch.of_step(each.step)
        samples = [_sample(rows, i) | ({} if texts is None else {"text": next(text)}) for i in range(len(rows))]
        steps.append(
            {
                "step": each.step,
                "num_rehearsed": each.num_rehearsed,
                "rehearsed_before": each.rehearsed_before,
                "policy_version": each.policy_version,
                "samples": samples,
            }
        )
    return {
        "run": header.run,
        "attempt": header.attempt,
        "corpus": header.corpus,
        "generation": header.generation,
        "injection_ratio": header.injection_ratio,
        "rank": header.rank,
        "world_size": header.world_size,
        "kind": header.kind,
        "steps": steps,
    }


def _sample(rows: Batch, i: int) -> dict[str, Any]:
    return {
        "sample_id": int(rows.sample_id[i]),
        **_content(rows, i),
        "base_loss": float(rows.base_loss[i]),
        "stratum": int(rows.stratum[i]),
        "probability": float(rows.probability[i]),
        "times_drawn": int(rows.times_drawn[i]),
    }


def _content(rows: Batch, i: int) -> dict[str, Any]:
    """What a sample is, and whether the base model was right about it."""
    ids = rows.input_ids[i, : rows.length[i]].tolist()
    bits = np.unpackbits(rows.base_correct[i], bitorder="little")
    if rows.label is None:
        return {"input_ids": ids, "base_correct": bits[: rows.length[i]].tolist()}
    inputs = {"input_ids": ids} if rows.inputs is None else {"inputs": rows.inputs[i].tolist()}
    return {**inputs, "label": int(rows.label[i]), "base_correct": int(bits[0])}
