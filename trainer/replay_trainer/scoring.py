"""Scoring a fine-tuning set: the base model's loss on each row, for a loop that weighs rows by it.

FLOW does (Sanyal et al., "Upweighting Easy Samples in Fine-Tuning Mitigates Forgetting", ICML 2025): the loss of a row
is the base model's mean cross-entropy over the tokens of the response.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay_service.errors import ReplayError
from replay_service.language.model import faster_precision, outline_of
from replay_service.language.packing import MIN_LENGTH, Bos
from replay_service.language.precision import Precision
from replay_service.language.scoring import RowScorer
from replay_service.language.tokenizer import bos_id
from replay_trainer.batches.examples import Example, check_text_columns, examples_of, scored_with
from replay_trainer.batches.tables import Tables, Unusable, check_writable, find_tables, parquet_writer
from replay_trainer.errors import InvalidTraining

ADDED: Final = (
    pa.field("base_loss", pa.float32()),
    pa.field("base_token_losses", pa.list_(pa.float32())),
    pa.field("truncated", pa.bool_()),
)
"""The columns that are added: mean nats per predicted token of the response; nats of each of them; whether the row was
longer than `seq_len` and was cut at the right. The first two are null where there is no token to predict."""


@dataclass(frozen=True, slots=True)
class ScoringSettings:
    """What to score, and how.

    Attributes:
        source: a table or a folder of them.
        output: the Parquet file to write.
        model: the base model, a local folder or a hub name.
        response_column: the text whose tokens count.
        prompt_column: the text before it, whose tokens do not; without it the first token of the text does not count,
            since nothing comes before it.
        seq_len: most tokens of a row.
        precision: `auto` takes bfloat16 where this machine is faster in it.
        batch_size: most rows of one forward pass.
        bos: whether each row begins with the tokenizer's bos token; `auto`: if the tokenizer itself puts it there.
    """

    source: Path
    output: Path
    model: str
    response_column: str = "text"
    prompt_column: str | None = None
    seq_len: int = 512
    precision: Precision | Literal["auto"] = "auto"
    batch_size: int = 8
    bos: Bos = "auto"

    def __post_init__(self) -> None:
        for name, least in (("seq_len", MIN_LENGTH), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise InvalidTraining(f"{name} must be at least {least}, not {getattr(self, name)}")

    def columns(self) -> list[str]:
        return [name for name in (self.prompt_column, self.response_column) if name is not None]


@dataclass(slots=True)
class Summary:
    """What was scored: counts of rows, and of the tokens whose losses were taken."""

    precision: Precision
    num_rows: int = 0
    num_unscored: int = 0
    num_truncated: int = 0
    num_tokens: int = 0
    unusable: Sequence[Unusable] = ()
    """Rows that could not be read, which are null."""
    as_json: Sequence[str] = ()
    """Columns that are kept as JSON in text, since no type holds all of their values."""
    _nats: float = field(default=0.0, repr=False)

    def mean_nats(self) -> float:
        """Mean loss of all those tokens, nats; NaN when there is none."""
        return self._nats / self.num_tokens if self.num_tokens else float("nan")

    def count(self, losses: Sequence[NDArray[np.float32] | None], truncated: Sequence[bool]) -> None:
        scored = [nats for nats in losses if nats is not None]
        self.num_rows += len(losses)
        self.num_unscored += len(losses) - len(scored)
        self.num_truncated += sum(truncated)
        self.num_tokens += sum(len(nats) for nats in scored)
        self._nats += sum(float(nats.sum(dtype=np.float64)) for nats in scored)


OnProgress = Callable[[int, int], object]
"""Told how many rows are done, and of how many."""


def score_rows(settings: ScoringSettings, on_progress: OnProgress = lambda _done, _total: None) -> Summary:
    """Write the rows of a fine-tuning set with the columns of `ADDED`, in their order, all other columns kept.

    Prompt and response are tokenized apart, without special tokens but a bos token, and joined. The file's metadata
    says under `base_loss` which model, precision, `seq_len` and `bos_id` the losses are of.

    A row whose line, or one of whose texts, cannot be read has no loss, and the summary names it.

    Raises:
        InvalidTraining: when no row, or columns, model or output cannot be used; nothing is written then.
    """
    tables = find_tables(settings.source, settings.columns())
    _check_columns(tables, settings)
    check_writable(settings.output, pa.schema([*tables.schema, *ADDED]))
    try:
        tokenizer = outline_of(settings.model, settings.seq_len).tokenizer
        before = bos_id(tokenizer, settings.bos)
        precision = faster_precision() if settings.precision == "auto" else settings.precision
        scorer = RowScorer(
            settings.model, precision, batch_size=settings.batch_size, token_losses=True, seq_len=settings.seq_len
        )
    except ReplayError as error:
        raise InvalidTraining(error.detail) from error
    summary = Summary(precision, unusable=tables.unusable, as_json=tables.as_json)
    on_progress(0, tables.num_rows)
    with parquet_writer(settings.output, _schema(tables.schema, settings, precision, before)) as writer:
        for batch in tables.batches():
            rows = examples_of(
                tokenizer, batch, settings.prompt_column, settings.response_column, settings.seq_len, before
            )
            losses = _losses(scorer, rows, lambda done: on_progress(summary.num_rows + done, tables.num_rows))
            writer.write_batch(_with_scores(batch, losses, rows, writer.schema))
            summary.count(losses, [row.truncated for row in rows])
            on_progress(summary.num_rows, tables.num_rows)
    return summary


def _losses(
    scorer: RowScorer, rows: list[Example], on_done: Callable[[int], object]
) -> list[NDArray[np.float32] | None]:
    """Nats of each token that counts; None for a row without any."""
    usable = [row for row in rows if row.num_counted]
    length = np.array([len(row.ids) for row in usable], dtype=np.int64)
    input_ids = np.zeros((len(usable), int(length.max(initial=0))), dtype=np.int32)
    for place, row in enumerate(usable):
        input_ids[place, : len(row.ids)] = row.ids
    done = 0

    def on_rows(num_rows: int) -> None:
        nonlocal done
        done += num_rows
        on_done(done)

    token_nats = scorer.score(input_ids, length, on_rows).token_nats
    assert token_nats is not None
    nats_of = iter(token_nats)
    return [next(nats_of)[row.first - 1 : len(row.ids) - 1] if row.num_counted else None for row in rows]


def _with_scores(
    batch: pa.RecordBatch, losses: list[NDArray[np.float32] | None], rows: list[Example], schema: pa.Schema
) -> pa.RecordBatch:
    means = [None if nats is None else nats.mean(dtype=np.float64) for nats in losses]
    values = (means, losses, [row.truncated for row in rows])
    added = [pa.array(column, each.type) for column, each in zip(values, ADDED, strict=True)]
    return pa.RecordBatch.from_arrays([*batch.columns, *added], schema=schema)


def _schema(schema: pa.Schema, settings: ScoringSettings, precision: Precision, bos_id: int | None) -> pa.Schema:
    metadata = {
        **(schema.metadata or {}),
        **scored_with(settings.model, precision, settings.seq_len, bos_id),
    }
    return pa.schema([*schema, *ADDED], metadata=metadata)


def _check_columns(tables: Tables, settings: ScoringSettings) -> None:
    check_text_columns(tables, settings.source, settings.columns())
    taken = [each.name for each in ADDED if each.name in tables.schema.names]
    if taken:
        raise InvalidTraining(
            f"{settings.source} has a column {taken[0]!r} already, which scoring would add; rename it or take it out"
        )
