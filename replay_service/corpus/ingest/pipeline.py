"""The Ray Data pipeline: shards -> packed rows -> scored rows in staging. Parts go from stage to stage.

stage   takes               gives, for each part
pack    shard, first row    a table of row, domain, group, input_ids, length, position in the shard; of what is to be
                            classified, which is not packed, also label, and of tensors inputs in place of input_ids
score   the same            writes it down with base_loss, base_correct and, when asked, topk_ids, topk_logprobs,
                            feature; gives shard_key, first, stop, num_tokens, position

A part is some neighbouring rows of one shard, and which ones follows from their numbers. To Ray Data it is one value,
which is neither cut nor joined to others. So rows meet the same others in the base model, and have the same losses to
the last bit, whatever else is scored, by how many actors, and however often a part is scored again.

Ray Data holds a stage back when the next one does not keep up: what is in memory at a time does not depend on how large
the shards are, or how many.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources, TaskPoolStrategy

from replay_service.classification.model import load_classifier
from replay_service.classification.scoring import ClassScorer
from replay_service.corpus.format.manifest import Classes
from replay_service.corpus.ingest.labelled import judged, labelled_table
from replay_service.corpus.ingest.scored import classified_rows, predicted_rows
from replay_service.corpus.ingest.staging import Packed, Piece, write_packed, write_parts, written_aside
from replay_service.corpus.shards.sources import (
    Columns,
    Document,
    Labelled,
    Reading,
    SetAside,
    Shard,
    in_pieces,
    read_documents,
)
from replay_service.errors import ReplayError
from replay_service.language.model import best_device
from replay_service.language.packing import Ends, PackedRows, Packer, id_dtype
from replay_service.language.precision import Precision
from replay_service.language.scoring import RowScorer
from replay_service.language.tokenizer import ids_of, load_tokenizer
from replay_service.wire.columns import wide_list


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
    staging: Path
    classes: Classes | None = None

    @property
    def row_bytes(self) -> int:
        """What the tokens or numbers of a row take."""
        if self.classes is None or not self.classes.input_shape:
            return self.seq_len * id_dtype(self.vocab_size).itemsize
        return math.prod(self.classes.input_shape) * np.dtype(self.classes.input_type).itemsize


Scoring = Callable[[pa.Table], pa.Table]
"""Adds to packed rows what the base model says of them."""


AnyDocument = TypeVar("AnyDocument", Document, Labelled)


class StagedPart(NamedTuple):
    """Rows that have been staged, and how many bytes of their shard had been read with them."""

    piece: Piece
    num_tokens: int
    position: int


_CPUS_TO_PACK: Final = 0.5
"""Other than a scorer's one CPU, since Ray Data would else fuse both stages, and tokenizing would hold up the model."""

_CPUS_A_PACKER: Final = 4
"""Tokenizing costs far less than scoring: more packers would only load their libraries, beside the scorers."""

_DOCUMENTS_AT_ONCE: Final = 256
_CHARACTERS_AT_ONCE: Final = 1 << 20
"""Or ready-made tokens; ids take tens of bytes each until they are packed."""

_BATCHES_A_PART: Final = 16
"""Forward passes between two writes: enough to sort rows by length, few enough to lose little when killed."""

_PARTS_AHEAD: Final = 64
"""Parts of each scorer that are between the stages at a time, at most; some hundred milliseconds of work or more."""


def run_pipeline(shards: Mapping[str, tuple[Shard, int]], settings: PipelineSettings) -> Iterator[StagedPart]:
    """Pack, score and stage shards, each (by its key) from the given row on; yields what has been staged."""
    wanted = ray.data.from_items(
        [{"shard_key": key, "first_row": first} for key, (_, first) in shards.items()], override_num_blocks=len(shards)
    )
    _bound_memory(wanted.context, settings)
    staged = wanted.map_batches(
        _pack_shards,
        batch_size=1,
        batch_format="pyarrow",
        compute=TaskPoolStrategy(size=max(1, int(ray.cluster_resources()["CPU"]) // _CPUS_A_PACKER)),
        num_cpus=_CPUS_TO_PACK,
        fn_kwargs={"shards": {key: shard for key, (shard, _) in shards.items()}, "settings": settings},
    ).map_batches(
        ScoreAndStage,
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=settings.num_scorers),
        num_gpus=settings.gpus_per_scorer if on_gpu() else 0,
        fn_constructor_args=(settings,),
    )
    for batch in staged.iter_batches(batch_size=None, batch_format="pyarrow"):
        for part in batch.to_pylist():
            piece = Piece(part["shard_key"], part["first"], part["stop"])
            yield StagedPart(piece, part["num_tokens"], part["position"])


def on_gpu() -> bool:
    """Whether the machines that Ray runs on have any."""
    return bool(ray.cluster_resources().get("GPU", 0) > 0)


def _bound_memory(context: DataContext, settings: PipelineSettings) -> None:
    """Packing is faster than scoring, and Ray Data would fill a third of the machine's memory with what is ahead."""
    context.target_max_block_size = 1  # so that a part goes out as soon as it is packed
    part_bytes = settings.batch_size * _BATCHES_A_PART * settings.row_bytes
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=part_bytes * _PARTS_AHEAD * settings.num_scorers
    )


def _pack_shards(table: pa.Table, shards: Mapping[str, Shard], settings: PipelineSettings) -> Iterator[pa.Table]:
    for each in table.to_pylist():
        for part in pack_shard(each["shard_key"], shards[each["shard_key"]], settings, each["first_row"]):
            yield pa.table({"shard_key": [each["shard_key"]], "part": _as_value(part)})


def pack_shard(key: str, shard: Shard, settings: PipelineSettings, first_row: int = 0) -> Iterator[pa.Table]:
    """Tokenize a shard and pack it, from row `first_row` on, in parts.

    What it held is written down before its last part goes out, so whoever has seen all rows knows that these are all.
    """
    found = _Found()
    held: pa.Table | None = None
    num_rows = 0
    with written_aside(settings.staging, key) as aside:
        tables = (_packed if settings.classes is None else _labelled)(shard, settings, found, aside)
        for part in _in_parts(tables, settings.batch_size * _BATCHES_A_PART):
            num_rows += len(part)
            if num_rows > first_row:
                if held is not None:
                    yield held
                held = part.slice(max(0, first_row + len(part) - num_rows))
    write_packed(settings.staging, key, Packed(num_rows, found.num_documents, found.set_aside))
    if held is not None:
        yield held


def _in_parts(tables: Iterator[pa.Table], rows_a_part: int) -> Iterator[pa.Table]:
    """The same rows in tables of `rows_a_part`, the last of what is left, with a column `row` of their numbers."""
    held: list[pa.Table] = []
    num_held = num_rows = 0
    for table in tables:
        while num_held + len(table) >= rows_a_part:
            missing = rows_a_part - num_held
            yield _numbered([*held, table.slice(0, missing)], num_rows)
            held, num_held, num_rows, table = [], 0, num_rows + rows_a_part, table.slice(missing)  # noqa: PLW2901
        if len(table):
            held.append(table)
            num_held += len(table)
    if held:
        yield _numbered(held, num_rows)


def _numbered(tables: list[pa.Table], first_row: int) -> pa.Table:
    part = pa.concat_tables(tables).combine_chunks()
    return part.add_column(0, "row", pa.array(np.arange(first_row, first_row + len(part))))


@dataclass(slots=True)
class _Found:
    """What has been found in a shard so far, and the position with the latest document or piece of one."""

    position: int = 0
    num_documents: int = 0
    set_aside: dict[str, int] = field(default_factory=dict)


class _Label(NamedTuple):
    """What the rows of one packed line have in common."""

    domain: str
    group: str | None


def _packed(shard: Shard, settings: PipelineSettings, found: _Found, aside: IO[str]) -> Iterator[pa.Table]:
    """Packed rows of a shard, some at a time; documents of one label, or their pieces, are laid end to end."""
    packers: dict[_Label, Packer] = {}
    before = 0
    for some in _some_at_once(_documents(shard, settings, found, aside)):
        contents, goes_on = [each.content for each in some], [not each.begins for each in some]
        ids = ids_of(_tokenizer(settings.model), contents, settings.vocab_size, goes_on)
        labelled: dict[_Label, list[tuple[Any, bool]]] = {}
        for document, its_ids in zip(some, ids, strict=True):
            labelled.setdefault(_Label(document.domain, document.group), []).append((its_ids, document.ends))
        for label, parts in labelled.items():
            if label not in packers:
                packers[label] = Packer(settings.seq_len, settings.ends, id_dtype(settings.vocab_size))
            yield _positioned(_table(label, packers[label].add(*zip(*parts, strict=True))), before, found.position)
        before = found.position
    for label, packer in packers.items():
        yield _positioned(_table(label, packer.finish()), before, before)


def _labelled(shard: Shard, settings: PipelineSettings, found: _Found, aside: IO[str]) -> Iterator[pa.Table]:
    """The samples of a shard, some at a time."""
    before = 0
    for some in _some_at_once(_documents(shard, settings, found, aside)):
        tokenizer = _tokenizer(settings.model) if isinstance(some[0].content, str) else None
        table = labelled_table(some, tokenizer, settings.seq_len, settings.vocab_size)
        yield _positioned(table, before, found.position)
        before = found.position


def _positioned(table: pa.Table, before: int, position: int) -> pa.Table:
    """The rows of documents that a shard holds from `before` on, with the position of each, spread evenly."""
    positions = np.linspace(before, position, len(table) + 1, dtype=np.int64)[1:]
    return table.append_column("position", pa.array(positions))


def _documents(shard: Shard, settings: PipelineSettings, found: _Found, aside: IO[str]) -> Iterator[Any]:
    """The documents, or their pieces, or the samples of a shard; rows that give none are written down."""
    reading = Reading()
    for each in read_documents(shard, settings.columns, reading):
        if isinstance(each, Labelled) and settings.classes is not None:
            each = judged(each, settings.classes, settings.vocab_size)  # noqa: PLW2901
        if isinstance(each, SetAside):
            found.set_aside[each.reason] = found.set_aside.get(each.reason, 0) + 1
            aside.write(json.dumps({"shard": shard.name, **each._asdict()}) + "\n")
        elif isinstance(each, Document):
            found.num_documents += each.ends
            num_bytes, length = reading.position - found.position, len(each.content)
            left = length
            for piece in in_pieces(each):
                left -= len(piece.content)
                found.position = reading.position - num_bytes * left // max(1, length)
                yield piece
        else:
            found.num_documents += 1
            found.position = reading.position
            yield each


def _some_at_once(documents: Iterator[AnyDocument]) -> Iterator[list[AnyDocument]]:
    some: list[AnyDocument] = []
    size = 0
    for document in documents:
        some.append(document)
        size += document.content.size if isinstance(document.content, np.ndarray) else len(document.content)
        if len(some) >= _DOCUMENTS_AT_ONCE or size >= _CHARACTERS_AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some


def _table(label: _Label, rows: PackedRows) -> pa.Table:
    return pa.table(
        {
            "domain": pa.array([label.domain] * len(rows), pa.string()),
            "group": pa.array([label.group] * len(rows), pa.string()),
            "input_ids": wide_list(rows.input_ids),
            "length": rows.length,
        }
    )


def _as_value(table: pa.Table) -> pa.Array:
    """A column of one value, which holds all of the table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    value = sink.getvalue()
    bounds = pa.py_buffer(np.array([0, value.size]))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, bounds, value])


def _of_value(value: pa.LargeBinaryScalar) -> pa.Table:
    return pa.ipc.open_stream(value.as_buffer()).read_all()


@lru_cache(maxsize=1)
def _tokenizer(model: str) -> Any:
    return load_tokenizer(model)


def _predicting(settings: PipelineSettings) -> Scoring:
    scorer = RowScorer(
        settings.model,
        settings.precision,
        batch_size=settings.batch_size,
        topk=settings.topk,
        features=settings.features,
        seq_len=settings.seq_len,
    )
    return partial(predicted_rows, scorer)


def _classifying(settings: PipelineSettings) -> Scoring:
    model = load_classifier(settings.model, is_text=settings.columns.inputs is None).to(best_device())
    return partial(classified_rows, ClassScorer(model, settings.precision, batch_size=settings.batch_size))


class ScoreAndStage:
    """An actor that holds the base model, adds what it says of packed rows, and writes them to staging."""

    def __init__(self, settings: PipelineSettings) -> None:
        torch.set_num_threads(settings.threads_per_scorer)
        self._staging = settings.staging
        try:
            self._scored = _predicting(settings) if settings.classes is None else _classifying(settings)
        except ReplayError as error:
            # Ray keeps of an error in a constructor nothing but its text; of one in a call it keeps all.
            self._scored = partial(_fail, error)

    def __call__(self, table: pa.Table) -> pa.Table:
        staged = [
            self._stage(key.as_py(), _of_value(part))
            for key, part in zip(table["shard_key"], table["part"], strict=True)
        ]
        return pa.Table.from_pylist(staged, schema=_PART_SCHEMA)

    def _stage(self, key: str, part: pa.Table) -> dict[str, Any]:
        position = part["position"][-1].as_py()
        (piece,) = write_parts(self._staging, key, self._scored(part.drop_columns("position")), position)
        return {**piece._asdict(), "num_tokens": pa.compute.sum(part["length"]).as_py(), "position": position}


def _fail(error: ReplayError, _: pa.Table) -> pa.Table:
    raise error


_PART_SCHEMA = pa.schema(
    [("shard_key", pa.string()), *((name, pa.int64()) for name in ("first", "stop", "num_tokens", "position"))]
)
