"""The Ray Data pipeline: shards -> packed rows -> scored rows in staging. Tables go from stage to stage.

stage   takes               gives
pack    shard, first row    shard_key, row, domain, group, input_ids, length
score   the same            adds base_loss, base_correct and, when asked, topk_ids, topk_logprobs, feature; writes it
                            down and gives shard_key, first, stop, num_tokens: one line for each part

A table is a few hundred rows, and Ray Data holds a stage back when the next one does not keep up: what is in memory
at a time does not depend on how large the shards are, or how many.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

from replay_service.corpus.segments import wide_binary, wide_list
from replay_service.corpus.sources import Columns, Document, SetAside, Shard, read_documents
from replay_service.corpus.staging import SET_ASIDE, Packed, Piece, write_packed, write_parts
from replay_service.language.packing import PackedRows, Packer, id_dtype
from replay_service.language.precision import Precision
from replay_service.language.scoring import RowScorer, Scores
from replay_service.language.tokenizer import ids_of, load_tokenizer


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """What the stages need; it travels to the workers.

    Attributes:
        batch_size: rows of one forward pass.
        num_scorers: actors that hold the base model.
        gpus_per_scorer: how much of a GPU each has where there are any; else each has `threads_per_scorer` threads.
        topk: how many of the base model's likeliest tokens to keep a position; 0 keeps none.
        features: whether to keep a feature of each row, to make clusters of.
    """

    model: str
    separator_id: int
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


class StagedPart(NamedTuple):
    """Rows that have been staged."""

    piece: Piece
    num_tokens: int


_CPUS_TO_PACK: Final = 0.5
"""Other than a scorer's one CPU, since Ray Data would else fuse both stages, and tokenizing would hold up the model."""

_CPUS_A_PACKER: Final = 4
"""Tokenizing costs far less than scoring: more packers would only load their libraries, beside the scorers."""

_DOCUMENTS_AT_ONCE: Final = 256
_BATCHES_A_PART: Final = 16
"""Forward passes between two writes: enough to sort rows by length, few enough to lose little when killed."""


def run_pipeline(shards: Mapping[str, tuple[Shard, int]], settings: PipelineSettings) -> Iterator[StagedPart]:
    """Pack, score and stage shards, each (by its key) from the given row on; yields what has been staged."""
    on_gpu = ray.cluster_resources().get("GPU", 0) > 0
    rows_a_part = settings.batch_size * _BATCHES_A_PART
    context = DataContext.get_current()
    usual = context.target_max_block_size
    context.target_max_block_size = rows_a_part * settings.seq_len * id_dtype(settings.vocab_size).itemsize
    try:
        dataset = (
            ray.data.from_items(
                [{"shard_key": key, "first_row": first} for key, (_, first) in shards.items()],
                override_num_blocks=len(shards),
            )
            .map_batches(
                _pack_shards,
                batch_size=1,
                batch_format="pyarrow",
                compute=TaskPoolStrategy(size=max(1, int(ray.cluster_resources()["CPU"]) // _CPUS_A_PACKER)),
                num_cpus=_CPUS_TO_PACK,
                fn_kwargs={"shards": {key: shard for key, (shard, _) in shards.items()}, "settings": settings},
            )
            .map_batches(
                ScoreAndStage,
                batch_size=rows_a_part,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=settings.num_scorers),
                num_gpus=settings.gpus_per_scorer if on_gpu else 0,
                fn_constructor_args=(settings,),
            )
        )
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            for part in batch.to_pylist():
                yield StagedPart(Piece(part["shard_key"], part["first"], part["stop"]), part["num_tokens"])
    finally:
        context.target_max_block_size = usual


def _pack_shards(table: pa.Table, shards: Mapping[str, Shard], settings: PipelineSettings) -> Iterator[pa.Table]:
    for each in table.to_pylist():
        yield from pack_shard(each["shard_key"], shards[each["shard_key"]], settings, each["first_row"])


def pack_shard(key: str, shard: Shard, settings: PipelineSettings, first_row: int = 0) -> Iterator[pa.Table]:
    """Tokenize a shard and pack it, from row `first_row` on, in tables of some rows.

    What it held is written down before its last table goes out, so whoever has seen all rows knows that these are all.
    """
    folder = settings.staging / key
    folder.mkdir(parents=True, exist_ok=True)
    found = _Found()
    held: pa.Table | None = None
    num_rows = 0
    with (folder / f".{SET_ASIDE}").open("w") as set_aside:
        for label, rows in _packed(shard, settings, found, set_aside):
            table = _table(key, label, rows, num_rows).slice(max(0, first_row - num_rows))
            num_rows += len(rows)
            if len(table):
                if held is not None:
                    yield held
                held = table
    if found.set_aside:
        (folder / f".{SET_ASIDE}").replace(folder / SET_ASIDE)
    else:
        (folder / f".{SET_ASIDE}").unlink()
    write_packed(settings.staging, key, Packed(num_rows, found.num_documents, found.set_aside))
    if held is not None:
        yield held


@dataclass(slots=True)
class _Found:
    """What has been found in a shard so far."""

    num_documents: int = 0
    set_aside: dict[str, int] = field(default_factory=dict)


class _Label(NamedTuple):
    """What the rows of one packed line have in common."""

    domain: str
    group: str | None


def _packed(
    shard: Shard, settings: PipelineSettings, found: _Found, set_aside: Any
) -> Iterator[tuple[_Label, PackedRows]]:
    """Packed rows of a shard, some at a time; documents of one label are laid end to end."""
    packers: dict[_Label, Packer] = {}
    documents = _documents(shard, settings, found, set_aside)
    while some := list(islice(documents, _DOCUMENTS_AT_ONCE)):
        labelled: dict[_Label, list[Any]] = {}
        for document, ids in zip(
            some, ids_of(_tokenizer(settings.model), [each.content for each in some]), strict=True
        ):
            labelled.setdefault(_Label(document.domain, document.group), []).append(ids)
        for label, lines in labelled.items():
            if label not in packers:
                packers[label] = Packer(settings.seq_len, settings.separator_id, id_dtype(settings.vocab_size))
            yield label, packers[label].add(lines)
    for label, packer in packers.items():
        yield label, packer.finish()


def _documents(shard: Shard, settings: PipelineSettings, found: _Found, set_aside: Any) -> Iterator[Document]:
    """The documents of a shard; rows that give none are written down."""
    for each in read_documents(shard, settings.columns):
        if isinstance(each, SetAside):
            found.set_aside[each.reason] = found.set_aside.get(each.reason, 0) + 1
            set_aside.write(json.dumps({"shard": shard.name, **each._asdict()}) + "\n")
        else:
            found.num_documents += 1
            yield each


def _table(key: str, label: _Label, rows: PackedRows, first_row: int) -> pa.Table:
    return pa.table(
        {
            "shard_key": pa.array([key] * len(rows), pa.string()),
            "row": np.arange(first_row, first_row + len(rows)),
            "domain": pa.array([label.domain] * len(rows), pa.string()),
            "group": pa.array([label.group] * len(rows), pa.string()),
            "input_ids": wide_list(rows.input_ids),
            "length": rows.length,
        }
    )


@lru_cache(maxsize=1)
def _tokenizer(model: str) -> Any:
    return load_tokenizer(model)


class ScoreAndStage:
    """An actor that holds the base model, adds what it says of packed rows, and writes them to staging."""

    def __init__(self, settings: PipelineSettings) -> None:
        torch.set_num_threads(settings.threads_per_scorer)
        self._staging = settings.staging
        self._seq_len = settings.seq_len
        self._id_dtype = id_dtype(settings.vocab_size)
        self._scorer = RowScorer(
            settings.model,
            settings.precision,
            batch_size=settings.batch_size,
            topk=settings.topk,
            features=settings.features,
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        scored = self._scored(table.combine_chunks())
        parts = []
        for key in scored["shard_key"].unique().to_pylist():
            rows = scored.filter(pa.compute.equal(scored["shard_key"], key)).drop_columns("shard_key")
            for piece in write_parts(self._staging, key, rows):
                here = rows.filter(
                    pa.compute.and_(rows["row"].to_numpy() >= piece.first, rows["row"].to_numpy() < piece.stop)
                )
                parts.append({**piece._asdict(), "num_tokens": pa.compute.sum(here["length"]).as_py()})
        return pa.Table.from_pylist(parts, schema=_PART_SCHEMA)

    def _scored(self, table: pa.Table) -> pa.Table:
        flat = pa.chunked_array(table["input_ids"].chunks).combine_chunks()
        input_ids = flat.flatten().to_numpy().reshape(len(table), self._seq_len)
        scores = self._scorer.score(input_ids, table["length"].to_numpy())
        for name, column in _columns(scores, self._id_dtype).items():
            table = table.append_column(name, column)
        return table


def _columns(scores: Scores, id_dtype: "np.dtype[Any]") -> dict[str, pa.Array]:
    columns = {
        "base_loss": pa.array(scores.base_loss),
        "base_correct": wide_binary(np.packbits(scores.correct, axis=1, bitorder="little")),
    }
    if scores.topk_ids is not None and scores.topk_logprobs is not None:
        columns["topk_ids"] = wide_list(scores.topk_ids.astype(id_dtype))
        columns["topk_logprobs"] = wide_list(scores.topk_logprobs)
    if scores.feature is not None:
        columns["feature"] = wide_list(scores.feature)
    return columns


_PART_SCHEMA = pa.schema(
    [("shard_key", pa.string()), ("first", pa.int64()), ("stop", pa.int64()), ("num_tokens", pa.int64())]
)
