"""The Ray Data pipeline: shards -> packed rows -> scored rows in staging. Parts go from stage to stage.

stage   takes               gives, for each part
pack    shard, first row    a table of row, domain, group, input_ids, length, position in the shard; of what is to be
                            classified, which is not packed, also label, and of tensors inputs in place of input_ids
score   the same            the same with base_loss, base_correct and, when asked, topk_ids, topk_logprobs, feature
stage   the same            written down on the disk of the ingest; shard_key, first, stop, num_tokens, position

Packing and scoring run on any node, and staging in the ingest's own process. So nodes need no disk in common.

A part is some neighbouring rows of one shard, and which ones follows from their numbers. To Ray Data it is one value,
which is neither cut nor joined to others. So rows meet the same others in the base model, and have the same losses to
the last bit, whatever else is scored, by how many actors, and however often a part is scored again.

Ray Data holds a stage back when the next one does not keep up: what is in memory at a time does not depend on how large
the shards are, or how many.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources, TaskPoolStrategy

from replay_service.classification.model import load_classifier
from replay_service.classification.scoring import ClassScorer
from replay_service.corpus.ingest.pack_shard import BATCHES_A_PART, pack_shard
from replay_service.corpus.ingest.parts import PackedPart, as_value, of_value
from replay_service.corpus.ingest.pipeline_settings import PipelineSettings
from replay_service.corpus.ingest.scored import classified_rows, predicted_rows
from replay_service.corpus.ingest.staging import Piece, write_aside, write_packed, write_parts
from replay_service.corpus.shards.sources import (
    Shard,
)
from replay_service.errors import ReplayError
from replay_service.language.model import best_device
from replay_service.language.scoring import RowScorer

Scoring = Callable[[pa.Table], pa.Table]
"""Adds to packed rows what the base model says of them."""


class StagedPart(NamedTuple):
    """Rows that have been staged, and how many bytes of their shard had been read with them."""

    piece: Piece
    num_tokens: int
    position: int


_CPUS_TO_PACK: Final = 0.5
"""Other than a scorer's one CPU, since Ray Data would else fuse both stages, and tokenizing would hold up the model."""

_CPUS_A_PACKER: Final = 4
"""Tokenizing costs far less than scoring: more packers would only load their libraries, beside the scorers."""

_PARTS_AHEAD: Final = 64
"""Parts of each scorer that are between the stages at a time, at most; some hundred milliseconds of work or more."""


def run_pipeline(
    shards: Mapping[str, tuple[Shard, int]], settings: PipelineSettings, staging: Path
) -> Iterator[StagedPart]:
    """Pack, score and stage shards, each (by its key) from the given row on; yields what has been staged."""
    wanted = ray.data.from_items(
        [{"shard_key": key, "first_row": first} for key, (_, first) in shards.items()], override_num_blocks=len(shards)
    )
    _bound_memory(wanted.context, settings)
    scored = wanted.map_batches(
        _pack_shards,
        batch_size=1,
        batch_format="pyarrow",
        compute=TaskPoolStrategy(size=max(1, int(ray.cluster_resources()["CPU"]) // _CPUS_A_PACKER)),
        num_cpus=_CPUS_TO_PACK,
        fn_kwargs={"shards": {key: shard for key, (shard, _) in shards.items()}, "settings": settings},
    ).map_batches(
        ScoreParts,
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=settings.num_scorers),
        num_gpus=settings.gpus_per_scorer if on_gpu() else 0,
        fn_constructor_args=(settings,),
    )
    for batch in scored.iter_batches(batch_size=None, batch_format="pyarrow"):
        for index in range(len(batch)):
            key, part = of_value(batch.slice(index, 1))
            yield _staged(staging, key, part)


def actors_of(num_scorers: int, gpus_per_scorer: float) -> list[dict[str, float]]:
    """What the tasks and actors that must run at a time need: one that packs, and those that score."""
    scorer = {"GPU": gpus_per_scorer} if on_gpu() else {"CPU": 1.0}
    return [{"CPU": _CPUS_TO_PACK}, *[scorer] * num_scorers]


def on_gpu() -> bool:
    """Whether the machines that Ray runs on have any."""
    return bool(ray.cluster_resources().get("GPU", 0) > 0)


def _pack_shards(table: pa.Table, shards: Mapping[str, Shard], settings: PipelineSettings) -> Iterator[pa.Table]:
    for each in table.to_pylist():
        for part in pack_shard(shards[each["shard_key"]], settings, each["first_row"]):
            yield as_value(each["shard_key"], part)


def _bound_memory(context: DataContext, settings: PipelineSettings) -> None:
    """Packing is faster than scoring, and Ray Data would fill a third of the machine's memory with what is ahead."""
    context.target_max_block_size = 1  # so that a part goes out as soon as it is packed
    part_bytes = settings.batch_size * BATCHES_A_PART * settings.scored_row_bytes
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=part_bytes * _PARTS_AHEAD * settings.num_scorers
    )


def _staged(staging: Path, key: str, part: PackedPart) -> StagedPart:
    """Write a scored part down. The end comes first: it counts only when all rows are there."""
    (staging / key).mkdir(parents=True, exist_ok=True)
    if part.end is not None:
        write_aside(staging, key, part.end.aside)
        write_packed(staging, key, part.end.packed)
    if part.rows is None:
        return StagedPart(Piece(key, 0, 0), 0, 0)
    position = part.rows["position"][-1].as_py()
    (piece,) = write_parts(staging, key, part.rows.drop_columns("position"), position)
    return StagedPart(piece, pa.compute.sum(part.rows["length"]).as_py(), position)


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


class ScoreParts:
    """An actor that holds the base model, and adds what it says of packed rows."""

    def __init__(self, settings: PipelineSettings) -> None:
        torch.set_num_threads(settings.threads_per_scorer)
        try:
            self._scored = _predicting(settings) if settings.classes is None else _classifying(settings)
        except ReplayError as error:
            # Ray keeps of an error in a constructor nothing but its text; of one in a call it keeps all.
            self._scored = partial(_fail, error)

    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.concat_tables([self._scored_value(table.slice(index, 1)) for index in range(len(table))])

    def _scored_value(self, value: pa.Table) -> pa.Table:
        key, part = of_value(value)
        if part.rows is None:
            return value
        position = part.rows["position"]
        rows = self._scored(part.rows.drop_columns("position"))
        return as_value(key, part._replace(rows=rows.append_column("position", position)))


def _fail(error: ReplayError, _: pa.Table) -> pa.Table:
    raise error
