"""What one ingest has staged, and how the corpus grows out of it."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay_service.corpus.format.manifest import Manifest
from replay_service.corpus.ingest.clusters import Clusters
from replay_service.corpus.ingest.growth import GroupOf, GrowingCorpus
from replay_service.corpus.ingest.pipeline import StagedPart, run_pipeline
from replay_service.corpus.ingest.pipeline_settings import PipelineSettings
from replay_service.corpus.ingest.settings import IngestSettings
from replay_service.corpus.ingest.staging import ReadyRows, parts_of, position_of, read_packed
from replay_service.corpus.ingest.status import MOST_NAMED, IngestProgress, OnProgress
from replay_service.corpus.publishing import Published
from replay_service.corpus.shards.sources import Shard, printable
from replay_service.errors import EmptyCorpus, ReplayError
from replay_service.ray_session import error_within

IsStopped = Callable[[], bool]

STAGING: Final = "staging"


@dataclass(slots=True)
class Work:
    """One ingest: what is staged, and what of it stands in segments."""

    settings: IngestSettings
    pipeline: PipelineSettings
    staging: Path
    manifest: Manifest
    passed_over: list[str]
    _ready: dict[str, ReadyRows] = field(default_factory=dict)
    _unfinished: dict[str, Shard] = field(default_factory=dict)
    _position: dict[str, int] = field(default_factory=dict)
    """How many bytes of each shard have been read for the rows that are staged."""
    _num_rows: int = 0
    _num_tokens: int = 0

    def run(self, before: list[str], shards: dict[str, Shard], tell: OnProgress, is_stopped: IsStopped) -> Manifest:
        """Stage what is missing of `shards`, and let the corpus grow meanwhile.

        Args:
            before: the keys of those that stand in the corpus whole.
            shards: the others by their keys, in their order.
        """
        for key in shards:
            parts = parts_of(self.staging, key)
            self._ready[key] = ReadyRows()
            self._ready[key].add(parts)
            self._position[key] = max((position_of(self.staging, each) for each in parts[-1:]), default=0)
        self._unfinished = dict(shards)
        self._forget_finished(list(shards))
        growing = self._growing([*before, *shards])
        growing.grow(self._num_ready)
        tell(self._progress(shards, growing))
        if is_stopped():
            return growing.manifest
        try:
            for piece, num_tokens, position in self._missing():
                self._ready[piece.shard_key].add([piece])
                self._position[piece.shard_key] = max(self._position[piece.shard_key], position)
                self._num_rows += piece.stop - piece.first
                self._num_tokens += num_tokens
                self._forget_finished([piece.shard_key])
                growing.grow(self._num_ready)
                tell(self._progress(shards, growing))
                if is_stopped():
                    return growing.manifest
        except Exception as error:
            if (ours := error_within(error, ReplayError)) is None:
                raise
            raise ours from error
        growing.grow(self._num_ready, is_all=True)
        self._unfinished.clear()
        tell(self._progress(shards, growing))
        if not growing.manifest.generation:
            source, reasons = printable(self.settings.source), growing.manifest.set_aside
            rows = (
                "; ".join(f"{num:,} rows set aside: {reason}" for reason, num in reasons.items()) or "they have no rows"
            )
            raise EmptyCorpus(f"the {len(shards)} shards of {source} hold nothing to make a corpus of ({rows})")
        shutil.rmtree(self.settings.corpus_folder / STAGING)
        return growing.manifest

    def _missing(self) -> Iterator[StagedPart]:
        left = {key: (shard, self._num_ready(key)) for key, shard in self._unfinished.items()}
        return run_pipeline(left, self.pipeline, self.staging) if left else iter(())

    def _growing(self, keys: list[str]) -> GrowingCorpus:
        url = self.settings.corpora_url
        return GrowingCorpus(
            folder=self.settings.corpus_folder,
            staging=self.staging,
            shards=keys,
            manifest=self.manifest,
            rows_per_segment=self.settings.rows_per_segment,
            group_of=self._group_of(),
            **({} if url is None else {"publish": Published(url, self.settings.corpus_folder).publish}),
        )

    def _group_of(self) -> GroupOf:
        if self.settings.num_clusters:
            return Clusters(self.settings.corpus_folder, self.settings.num_clusters).group_of
        return _domain if self.settings.columns.group is None else _column

    def _num_ready(self, key: str) -> int:
        return self._ready[key].stop

    def _forget_finished(self, keys: list[str]) -> None:
        for key in keys:
            packed = read_packed(self.staging, key)
            if packed is not None and self._num_ready(key) == packed.num_rows:
                self._unfinished.pop(key, None)

    def _progress(self, shards: dict[str, Shard], growing: GrowingCorpus) -> IngestProgress:
        all_bytes = sum(shard.num_bytes for shard in shards.values())
        bytes_left = sum(max(0, shard.num_bytes - self._position[key]) for key, shard in self._unfinished.items())
        return IngestProgress(
            shards_done=len(growing.shards) - len(self._unfinished),
            num_shards=len(growing.shards),
            share_done=1 - bytes_left / all_bytes if all_bytes else float(not self._unfinished),
            num_rows=self._num_rows,
            num_tokens=self._num_tokens,
            num_set_aside=sum(growing.manifest.set_aside.values()),
            generation=growing.manifest.generation,
            num_passed_over=len(self.passed_over),
            passed_over=self.passed_over[:MOST_NAMED],
        )


def _domain(staged: pa.Table) -> NDArray[np.str_]:
    return np.array(staged["domain"].to_pylist())


def _column(staged: pa.Table) -> NDArray[np.str_]:
    return np.array(staged["group"].to_pylist())
