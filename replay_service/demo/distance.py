"""How far tuned models have moved from their base model, by what they predict on held-out text.

The loss on text cannot tell that of a model that was not trained on the text last: to learn the text lowers its loss.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from replay_service.language.model import autocast, load_model
from replay_service.language.model_parts import BaseStates, LanguageLosses, split_model
from replay_service.language.tokenizer import load_tokenizer
from replay_trainer.config import TrainConfig
from replay_trainer.job.evaluation import TARGET, HeldOut
from replay_trainer.job.feed import load_heldout


def distances(jobs: Iterable[TrainConfig]) -> Iterator[float]:
    """Of the tuned model of each job, all of one base model and one held-out text of pretraining domains.

    Gives:
        The Kullback-Leibler divergence of the tuned model's predictions from the base model's over the whole
        vocabulary, nats per token, mean over the domains.
    """
    base, heldout = None, HeldOut({})
    for job in jobs:
        if base is None:
            base, heldout = load_model(job.model), load_heldout(job.data, load_tokenizer(job.model))
        yield _distance(load_model(str(job.output / "model")), base, heldout, job.precision == "bf16")


@torch.inference_mode()
def _distance(model: Any, base: Any, heldout: HeldOut, is_bf16: bool) -> float:
    means = []
    with autocast("bf16" if is_bf16 else "float32", torch.device("cpu")):
        measure, parts = LanguageLosses(model), split_model(base)
        for rows in (each for domain, each in heldout.rows.items() if domain != TARGET):
            ids_BT, length_B = torch.from_numpy(rows.input_ids).long(), torch.from_numpy(rows.length).long()
            losses = measure(ids_BT, length_B, BaseStates.of(base, parts, ids_BT))
            means.append(float(losses.divergence_RS.sum() / losses.mask_BS.sum()))
    return sum(means) / len(means)
