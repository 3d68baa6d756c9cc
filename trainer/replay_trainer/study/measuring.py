"""Held-out rows, scored by a model: losses, flips and gains of each domain, on each half of its rows.

Shapes: n rows, T tokens, S = T - 1 predictions, D domains, 2 halves.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from replay_service.language.model import autocast, evaluating
from replay_service.language.model_parts import LanguageLosses
from replay_service.language.precision import Precision
from replay_service.language.tokenizer import load_tokenizer
from replay_trainer.batches.target import TrainingRows
from replay_trainer.config import DataConfig, TrainConfig
from replay_trainer.errors import InvalidTraining
from replay_trainer.job.evaluation import TARGET, HeldOut
from replay_trainer.job.feed import document_ends, load_heldout

Float64Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_ROWS_AT_ONCE: Final = 64
NUM_HALVES: Final = 2


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model makes of some rows."""

    nats: Float64Array
    """float64 [n], summed over the predictions that count."""
    num_tokens: NDArray[np.int64]
    """int64 [n], how many those are."""
    correct: BoolArray
    """bool [n, S]: one that counts, and is right."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Sums over the rows of each half of each domain, [D][2]: first half of its rows, second half."""

    base_nats: list[list[float]]
    nats: list[list[float]]
    num_tokens: list[list[int]]
    num_base_right: list[list[int]]
    num_flips: list[list[int]]
    """Predictions that the base model got right and the model gets wrong."""
    num_gains: list[list[int]]
    """The reverse."""


def heldout_of(job: TrainConfig, data: DataConfig, most_rows: int) -> HeldOut:
    """The held-out rows of a job, at most so many of each domain: the first ones.

    Raises:
        InvalidTraining: when they cannot be read, or a domain has fewer than two.
    """
    tokenizer = load_tokenizer(job.model)
    rows = load_heldout(data, tokenizer, document_ends(job, tokenizer)).rows
    for name, each in rows.items():
        if len(each) < NUM_HALVES:
            raise InvalidTraining(
                f"the held-out text of {name!r} makes {len(each)} rows of {data.seq_len} tokens, and a study needs "
                f"{NUM_HALVES}: one to choose the worst domain by and one to measure it on; add text, or leave it out"
            )
    return HeldOut({name: each.take(np.arange(min(len(each), most_rows))) for name, each in rows.items()})


@torch.no_grad()
def score(model: Any, rows: TrainingRows, precision: Precision, device: torch.device) -> Scores:
    """Score rows in evaluation mode; where they have weights, predictions of weight 0 do not count."""
    parts: list[tuple[Any, ...]] = []
    with evaluating(model):
        measure = LanguageLosses(model)
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows.take(np.arange(first, min(first + _ROWS_AT_ONCE, len(rows))))
            ids_BT = torch.from_numpy(some.input_ids.astype(np.int64)).to(device)
            with autocast(precision, device):
                losses = measure(ids_BT, torch.from_numpy(some.length.astype(np.int64)).to(device))
            counted_BS = losses.mask_BS
            if some.weight is not None:
                counted_BS = counted_BS & torch.from_numpy(some.weight[:, 1:] > 0).to(device)
            nats_B = losses.nll_BS.where(counted_BS, 0.0).double().sum(dim=1)
            found = (nats_B, counted_BS.sum(dim=1), losses.correct_BS & counted_BS)
            parts.append(tuple(each.cpu().numpy() for each in found))
    return Scores(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def compared(before: Scores, after: Scores) -> Measured:
    """What changed on the rows of one domain; D is 1."""
    half = np.arange(len(before.nats)) * NUM_HALVES // max(1, len(before.nats))
    flips = (before.correct & ~after.correct).sum(axis=1)
    gains = (~before.correct & after.correct).sum(axis=1)

    def of_halves(values: NDArray[Any]) -> list[list[Any]]:
        return [[values[half == each].sum().item() for each in range(NUM_HALVES)]]

    right = before.correct.sum(axis=1)
    columns = (before.nats, after.nats, before.num_tokens, right, flips, gains)
    return Measured(*(of_halves(each) for each in columns))


def measured(heldout: HeldOut, before: dict[str, Scores], after: dict[str, Scores]) -> tuple[list[str], Measured]:
    """The pretraining domains in name order, and what changed on them."""
    domains = sorted(name for name in heldout.rows if name != TARGET)
    each = [compared(before[name], after[name]) for name in domains]
    columns = ([of_halves for one in each for of_halves in getattr(one, part.name)] for part in fields(Measured))
    return domains, Measured(*columns)


def save_scores(path: Path, scores: dict[str, Scores]) -> None:
    """Write scores of several domains to one file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"{name}/{part}": getattr(each, part) for name, each in scores.items() for part in Scores.__slots__}
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, **arrays)
    part.replace(path)


def load_scores(path: Path) -> dict[str, Scores]:
    with np.load(path) as arrays:
        names = dict.fromkeys(each.rpartition("/")[0] for each in arrays.files)
        return {name: Scores(*(arrays[f"{name}/{part}"] for part in Scores.__slots__)) for name in names}
