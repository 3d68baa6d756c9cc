"""The Ray Data pipeline: shards -> packed rows -> scored rows -> staged parts. Tables go from stage to stage.

stage   takes                  gives
pack    shard                  shard_key, row, domain, input_ids, length
score   the same               + base_loss, base_correct
stage   the same, written      shard_key, num_rows, num_tokens (one line for each part file)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from replay_service.corpus.segments import list_rows, wide_binary, wide_list
from replay_service.corpus.sources import Columns, Shard, read_documents
from replay_service.corpus.staging import Packed, write_packed, write_part
from replay_service.language.model import Precision
from replay_service.language.packing import id_dtype, pack
from replay_service.language.scoring import RowScorer
from replay_service.language.tokenizer import encode, load_tokenizer


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """What the stages need; it travels to the workers."""

    model: str
    separator_id: int
    vocab_size: int
    seq_len: int
    columns: Columns
    precision: Precision
    batch_size: int
    num_scorers: int
    threads_per_scorer: int
    staging: Path


@dataclass(frozen=True, slots=True)
class StagedPart:
    """A part that has been written."""

    shard_key: str
    num_rows: int
    num_tokens: int


_CPUS_TO_PACK = 0.5
"""Other than a scorer's one CPU, since Ray Data would else fuse both stages, and tokenizing would hold up the model."""


_CPUS_A_PACKER = 4
"""Tokenizing costs far less than scoring: more packers would only load their libraries, beside the scorers."""


def run_pipeline(shards: dict[str, Shard], settings: PipelineSettings) -> Iterator[StagedPart]:
    """Pack, score and stage `shards` (by shard key); yields every part when it has been written."""
    on_gpu = ray.cluster_resources().get("GPU", 0) > 0
    dataset = (
        ray.data.from_items([{"shard_key": key} for key in shards], override_num_blocks=len(shards))
        .map_batches(
            _pack_shards,
            batch_size=1,
            batch_format="pyarrow",
            compute=TaskPoolStrategy(size=max(1, int(ray.cluster_resources()["CPU"]) // _CPUS_A_PACKER)),
            num_cpus=_CPUS_TO_PACK,
            fn_kwargs={"shards": shards, "settings": settings},
        )
        .map_batches(
            Scorer,
            batch_size=settings.batch_size,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=settings.num_scorers),
            num_gpus=1 if on_gpu else 0,
            fn_constructor_args=(settings,),
        )
        .map_batches(_stage, batch_size=None, batch_format="pyarrow", fn_kwargs={"staging": settings.staging})
    )
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for part in batch.to_pylist():
            yield StagedPart(**part)


def _pack_shards(table: pa.Table, shards: dict[str, Shard], settings: PipelineSettings) -> Iterator[pa.Table]:
    for key in table["shard_key"].to_pylist():
        yield from pack_shard(key, shards[key], settings)


def pack_shard(key: str, shard: Shard, settings: PipelineSettings) -> Iterator[pa.Table]:
    """Tokenize a shard and pack it, one table a domain.

    What it held is written down first: the next stages and the driver may see a row before this one ends.
    """
    texts: dict[str, list[str]] = {}
    num_set_aside = 0
    for document in read_documents(shard, settings.columns):
        if document.text is None:
            num_set_aside += 1
        else:
            texts.setdefault(document.domain, []).append(document.text)
    packed = {}
    for domain, documents in sorted(texts.items()):
        encoded = encode(_tokenizer(settings.model), documents)
        packed[domain] = pack(encoded, settings.seq_len, settings.separator_id, id_dtype(settings.vocab_size))
    num_rows = sum(len(rows) for rows in packed.values())
    num_documents = sum(len(documents) for documents in texts.values())
    write_packed(settings.staging, key, Packed(num_rows, num_documents, num_set_aside))
    first_row = 0
    for domain, rows in packed.items():
        yield pa.table(
            {
                "shard_key": pa.array([key] * len(rows), pa.string()),
                "row": np.arange(first_row, first_row + len(rows)),
                "domain": pa.array([domain] * len(rows), pa.string()),
                "input_ids": wide_list(rows.input_ids),
                "length": rows.length,
            }
        )
        first_row += len(rows)


@lru_cache(maxsize=1)
def _tokenizer(model: str) -> Any:
    return load_tokenizer(model)


class Scorer:
    """An actor that holds the base model and adds its loss and its hits to packed rows."""

    def __init__(self, settings: PipelineSettings) -> None:
        torch.set_num_threads(settings.threads_per_scorer)
        self._scorer = RowScorer(settings.model, settings.precision, batch_size=settings.batch_size)

    def __call__(self, table: pa.Table) -> pa.Table:
        input_ids = list_rows(table["input_ids"].combine_chunks())
        scores = self._scorer.score(input_ids, table["length"].to_numpy())
        base_correct = np.packbits(scores.correct, axis=1, bitorder="little")
        table = table.append_column("base_loss", pa.array(scores.base_loss))
        return table.append_column("base_correct", wide_binary(base_correct))


def _stage(table: pa.Table, staging: Path) -> pa.Table:
    parts = []
    for key in table["shard_key"].unique().to_pylist():
        part = table.filter(pa.compute.equal(table["shard_key"], key)).drop_columns("shard_key")
        write_part(staging, key, part)
        num_tokens = pa.compute.sum(part["length"]).as_py()
        parts.append({"shard_key": key, "num_rows": len(part), "num_tokens": num_tokens})
    return pa.Table.from_pylist(parts, schema=_PART_SCHEMA)


_PART_SCHEMA = pa.schema([("shard_key", pa.string()), ("num_rows", pa.int64()), ("num_tokens", pa.int64())])
