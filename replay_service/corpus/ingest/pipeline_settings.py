"""The settings of the pipeline, which travel to its workers."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from replay_service.corpus.format.manifest import Classes
from replay_service.corpus.shards.sources import Columns
from replay_service.language.packing import Ends, id_dtype
from replay_service.language.precision import Precision

_BYTES_A_LIKELY_TOKEN: Final = 6


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """What the stages need; it travels to the workers.

    Attributes:
        batch_size: rows of one forward pass.
        num_scorers: actors that hold the base model.
        gpus_per_scorer: how much of a GPU each has where there are any; else each has `threads_per_scorer` threads.
        topk: how many of the base model's likeliest tokens to keep a position; 0 keeps none.
        features: whether to keep a feature of each row, to make clusters of.
        classes: of samples to classify; None in a language corpus.
    """

    model: str
    ends: Ends
    vocab_size: int
    seq_len: int
    columns: Columns
    precision: Precision
    batch_size: int
    num_scorers: int
    gpus_per_scorer: float
    threads_per_scorer: int
    topk: int
    features: bool
    classes: Classes | None = None

    @property
    def row_bytes(self) -> int:
        """What the tokens or numbers of a row take."""
        if self.classes is None or not self.classes.input_shape:
            return self.seq_len * id_dtype(self.vocab_size).itemsize
        return math.prod(self.classes.input_shape) * np.dtype(self.classes.input_type).itemsize

    @property
    def scored_row_bytes(self) -> int:
        """About what a row takes with what the base model says of it."""
        return self.row_bytes + self.seq_len * self.topk * _BYTES_A_LIKELY_TOKEN
