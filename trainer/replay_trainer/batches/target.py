"""The fine-tuning rows: texts, or examples of prompt and response, in an order that is a function of the place in it.

source                            rows                                             what counts
texts, token ids                  laid end to end and cut (`packed`)               every token
examples, weighed by FLOW or not  laid end to end, or one a row (`padded`)         responses, by their weight
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog
from numpy.typing import NDArray

from replay_service.corpus.shards.sources import (
    Columns,
    Document,
    check_readable,
    find_shards,
    is_url,
    printable,
    read_documents,
)
from replay_service.errors import ReplayError
from replay_service.language.packing import Ends, PackedRows, id_dtype, laid_out, pack
from replay_service.language.tokenizer import ends_of, ids_of, vocab_size
from replay_trainer.batches.examples import Example, check_scored_with, check_text_columns, examples_of
from replay_trainer.batches.shuffled import ShuffledRows
from replay_trainer.batches.tables import Tables, find_tables
from replay_trainer.config import DataConfig, FlowConfig
from replay_trainer.errors import InvalidTraining
from replay_trainer.methods.flow import FlowWeights

_log = structlog.get_logger()

Float32Array = NDArray[np.float32]

BASE_LOSS_COLUMNS: Final = {"sequence": "base_loss", "token": "base_token_losses"}
"""The column of `replay-trainer score` for each form of FLOW."""

_LEAST_WEIGHT: Final = float(np.finfo(np.float32).tiny)
"""A weight of 0 marks what does not count, so what does has at least this."""


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Rows to train on; what lies beyond a row's length is padding."""

    input_ids: NDArray[np.unsignedinteger]
    """[n, T], the narrowest unsigned type that holds the vocabulary."""
    length: NDArray[np.int32]
    """int32 [n]."""
    weight: Float32Array | None = None
    """float32 [n, T]: what the prediction of each token weighs in the loss; 0 for tokens that do not count. None: 1."""

    def __len__(self) -> int:
        return len(self.length)

    def take(self, index: NDArray[np.int64]) -> "TrainingRows":
        """The rows at some places, in their order."""
        weight = None if self.weight is None else self.weight[index]
        return TrainingRows(self.input_ids[index], self.length[index], weight)


def load_target(data: DataConfig, flow: FlowConfig | None, tokenizer: Any, ends: Ends | None = None) -> TrainingRows:
    """The rows of a job.

    Args:
        data: where they are.
        flow: weighs them.
        tokenizer: of the model to tune.
        ends: the tokens around documents; by default those that `data` says of this tokenizer.

    Raises:
        InvalidTraining: when they cannot be read, or nothing in them counts; when FLOW has no base losses to weigh by.
    """
    ends = ends or ends_of(tokenizer, data.bos)
    if data.response_column is None and flow is None:
        # Domains are of held-out pretraining text; a target is one whatever it is made of.
        columns = Columns(data.text_column, data.tokens_column)
        packed = concatenated(list(packed_by_domain(data.target, columns, tokenizer, data.seq_len, ends).values()))
        return TrainingRows(packed.input_ids, packed.length)
    if data.tokens_column is not None or is_url(data.target):
        raise InvalidTraining("examples, and rows that FLOW weighs, are tables of text on this machine")
    response = data.response_column or data.text_column
    texts = [name for name in (data.prompt_column, response) if name is not None]
    tables = find_tables(Path(data.target), texts)
    check_text_columns(tables, data.target, texts)
    if tables.unusable:
        _log.warning("rows left out", left_out=len(tables.unusable), of=tables.num_rows, first=tables.unusable[0])
    found = _weighed(tables, data, flow, tokenizer, response, ends.bos_id)
    usable = [(example, weight) for example, weight in found if example.num_counted]
    if len(usable) < len(found):
        _log.warning(
            "examples left out: no token of a response within seq_len",
            left_out=len(found) - len(usable),
            of=len(found),
        )
    if not usable:
        raise InvalidTraining(f"no row of {data.target} has a token of a response within seq_len {data.seq_len}")
    lay = _laid_end_to_end if data.layout == "packed" else _one_a_row
    return lay(usable, data.seq_len, ends, id_dtype(vocab_size(tokenizer)))


Weighed = tuple[Example, Float32Array]
"""An example, and what each of its tokens and the separator after it weigh: float32 [len(ids) + 1]."""


def _weighed(
    tables: Tables, data: DataConfig, flow: FlowConfig | None, tokenizer: Any, response: str, bos_id: int | None
) -> list[Weighed]:
    examples: list[Example] = []
    base_losses: list[Any] = []
    column = None if flow is None else BASE_LOSS_COLUMNS[flow.form]
    if column is not None and column not in tables.schema.names:
        raise InvalidTraining(
            f"{data.target} has no column {column!r}, by which FLOW weighs its rows; `replay-trainer score` adds it, "
            "with the model, the columns and the seq_len of this job"
        )
    if flow is not None:
        check_scored_with(tables.schema, bos_id, data.target)
    for batch in tables.batches():
        examples += examples_of(tokenizer, batch, data.prompt_column, response, data.seq_len, bos_id)
        if column is not None:
            base_losses += batch.column(column).to_pylist()
    if flow is None:
        return [(example, _weight_of(example, 1.0)) for example in examples]
    return _weighed_by_flow(flow, examples, base_losses, str(data.target))


def _weighed_by_flow(flow: FlowConfig, examples: list[Example], base_losses: list[Any], source: str) -> list[Weighed]:
    """Examples without a base loss have no token that counts, and weigh nothing."""
    for row, (example, loss) in enumerate(zip(examples, base_losses, strict=True)):
        fits = loss is not None if flow.form == "sequence" else len(loss or ()) == example.num_counted
        if example.num_counted and not fits:
            raise InvalidTraining(
                f"row {row} of {source} has {example.num_counted} tokens of a response, but its base loss is of "
                "others; score it with the tokenizer, the columns and the seq_len of this job"
            )
    known = [np.atleast_1d(np.asarray(loss, dtype=np.float64)) for loss in base_losses if loss is not None]
    rule = FlowWeights.fit(
        np.concatenate(known or [np.empty(0)]), form=flow.form, tau=flow.tau, normalize=flow.normalize
    )
    _log.info("FLOW", form=flow.form, tau_nats=rule.tau_nats, num_losses=sum(map(len, known)))
    return [
        (example, _weight_of(example, 0.0 if loss is None else rule.of(np.atleast_1d(np.asarray(loss, np.float64)))))
        for example, loss in zip(examples, base_losses, strict=True)
    ]


def _weight_of(example: Example, counted: float | Float32Array) -> Float32Array:
    """Of each token and of the separator, which weighs what the response's tokens weigh on average."""
    weight = np.zeros(len(example.ids) + 1, dtype=np.float32)
    if example.num_counted:
        weight[example.first : -1] = np.maximum(counted, _LEAST_WEIGHT)
        weight[-1] = weight[example.first : -1].mean()
    return weight


def _laid_end_to_end(examples: list[Weighed], seq_len: int, ends: Ends, dtype: np.dtype[Any]) -> TrainingRows:
    documents = [example.ids for example, _ in examples]
    rows = pack(documents, seq_len, ends, dtype)
    ids_of_line, weight_of_line = laid_out(documents, ends, dtype), np.concatenate([each for _, each in examples])
    weight = np.zeros(rows.input_ids.shape, dtype=np.float32)
    first = 0
    for row, length in enumerate(rows.length.tolist()):
        # A row that goes on with an example may begin with a bos token, which is not in the line and weighs nothing.
        begin = int(rows.input_ids[row, 0] != ids_of_line[first])
        weight[row, begin:length] = weight_of_line[first : first + length - begin]
        first += length - begin
    return TrainingRows(rows.input_ids, rows.length, weight)


def _one_a_row(examples: list[Weighed], seq_len: int, ends: Ends, dtype: np.dtype[Any]) -> TrainingRows:
    """Rows end with the separator if there is room for it, and are filled up with more of them."""
    input_ids = np.full((len(examples), seq_len), ends.separator_id, dtype=dtype)
    weight = np.zeros((len(examples), seq_len), dtype=np.float32)
    length = np.empty(len(examples), dtype=np.int32)
    for row, (example, weight_of) in enumerate(examples):
        length[row] = min(seq_len, len(example.ids) + 1)
        input_ids[row, : len(example.ids)] = example.ids
        weight[row, : length[row]] = weight_of[: length[row]]
    return TrainingRows(input_ids, length, weight)


def packed_by_domain(
    source: str | Path, columns: Columns, tokenizer: Any, seq_len: int, ends: Ends
) -> dict[str, PackedRows]:
    """The text, or the ready-made token ids, of shards as packed rows, for each domain in name order.

    Raises:
        InvalidTraining: when a shard cannot be read, there is no text, or ids are not of this tokenizer.
    """
    try:
        contents = _contents_by_domain(source, columns)
        encoded = {domain: ids_of(tokenizer, documents) for domain, documents in sorted(contents.items())}
    except ReplayError as error:
        raise InvalidTraining(error.detail) from error
    dtype = id_dtype(vocab_size(tokenizer))
    packed = {domain: pack(documents, seq_len, ends, dtype) for domain, documents in encoded.items()}
    if not any(len(rows) for rows in packed.values()):
        raise InvalidTraining(f"{printable(source)} holds no text to train on")
    return packed


def _contents_by_domain(source: str | Path, columns: Columns) -> dict[str, list[str | NDArray[np.int64]]]:
    contents: dict[str, list[str | NDArray[np.int64]]] = {}
    for shard in find_shards(source):
        check_readable(shard, columns)
        pieces: list[Any] = []
        for document in read_documents(shard, columns):
            if isinstance(document, Document):
                pieces.append(document.content)
                if document.ends:
                    whole = pieces[0] if len(pieces) == 1 else "".join(pieces)
                    contents.setdefault(document.domain, []).append(whole)
                    pieces = []
    return contents


def concatenated(parts: list[PackedRows]) -> PackedRows:
    return PackedRows(
        np.concatenate([part.input_ids for part in parts]), np.concatenate([part.length for part in parts])
    )


@dataclass(slots=True)
class TargetRows:
    """An endless stream of fine-tuning rows, shuffled anew in every epoch (`ShuffledRows`)."""

    rows: TrainingRows
    seed: int
    _order: ShuffledRows = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._order = ShuffledRows(len(self.rows), self.seed)

    def take(self, places: range) -> TrainingRows:
        """The rows at the given places of the stream."""
        return self.rows.take(np.array(self._order.rows_at(places), dtype=np.int64))
