"""Held-out text of the corpus and of several targets, measured before and after tuning."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from replay_service.language.model import load_model
from replay_service.language.precision import Precision
from replay_trainer.batches.target import TrainingRows
from replay_trainer.config import TrainConfig
from replay_trainer.job.evaluation import TARGET
from replay_trainer.study.measuring import (
    NUM_HALVES,
    Measured,
    Scores,
    compared,
    heldout_of,
    load_scores,
    save_scores,
    score,
)
from tests.evidence.chains import Row

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class HeldText:
    """Rows of text by name, and what the first model makes of them.

    Attributes:
        targets: those of the names that are no part of the corpus.
    """

    rows: dict[str, TrainingRows]
    targets: tuple[str, ...]
    before: dict[str, Scores]
    precision: Precision

    @classmethod
    def of(
        cls, job: TrainConfig, folder: Path, targets: Sequence[str], most_rows: int, precision: Precision, scores: Path
    ) -> "HeldText":
        """At most so many rows of each domain and each target.

        Args:
            job: names the first model and the held-out text of the corpus.
            folder: holds a folder of held-out text for each target.
            scores: file that keeps what the first model makes of the rows.
        """
        data = job.data.model_copy(update={"heldout_target": None})
        rows = dict(sorted(heldout_of(job, data, most_rows).rows.items()))
        for name in targets:
            of_target = {"heldout_pretraining": None, "heldout_target": str(folder / name)}
            rows[name] = heldout_of(job, data.model_copy(update=of_target), most_rows).rows[TARGET]
        known = load_scores(scores) if scores.exists() else {}
        if not rows.keys() <= known.keys():
            known |= _scored(load_model(job.model), rows, precision)
            save_scores(scores, known)
        return cls(rows, tuple(targets), known, precision)

    def measured(self, model: Any) -> Iterator[Row]:
        """A row for each half of each domain and target: sums over its tokens, by the first model and by this one."""
        for name, after in _scored(model, self.rows, self.precision).items():
            found = compared(self.before[name], after)
            kind = "target" if name in self.targets else "pretraining"
            for half in range(NUM_HALVES):
                sums = {each.name: getattr(found, each.name)[0][half] for each in fields(Measured)}
                yield {"kind": kind, "text": name, "half": half, **sums}


def _scored(model: Any, rows: dict[str, TrainingRows], precision: Precision) -> dict[str, Scores]:
    return {name: score(model, each, precision, _CPU) for name, each in rows.items()}
