"""Ingest: from shards to a corpus that grows. Killed at any moment and called again, it goes on where it was.

<corpus>/manifest.json       what can be rehearsed from: replaced with every generation
<corpus>/shards.jsonl        the shards of the corpus, in the order of their rows
<corpus>/segments/           rows
<corpus>/set_aside/          the rows of shards that could not be used, and why, a file a shard
<corpus>/clusters.npy        the centres of its clusters, if it is partitioned by them
<corpus>/staging/<digest>/   what is scored and does not stand in segments yet; the digest is of how it was made
<corpus>/status.json         how the latest ingest is going
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay_service.corpus.format.manifest import MANIFEST_NAME, Manifest, read_manifest
from replay_service.corpus.format.texts import write_tokenizer
from replay_service.corpus.ingest.base_model import BaseModel, base_model_of
from replay_service.corpus.ingest.clusters import Clusters
from replay_service.corpus.ingest.fitting import check_fits
from replay_service.corpus.ingest.growth import GroupOf, GrowingCorpus
from replay_service.corpus.ingest.model_files import check_safetensors
from replay_service.corpus.ingest.pipeline import PipelineSettings, StagedPart, on_gpu, run_pipeline
from replay_service.corpus.ingest.settings import IngestSettings, digest
from replay_service.corpus.ingest.shard_list import ListedShard, Pending, in_order, read_shard_list, write_shard_list
from replay_service.corpus.ingest.staging import ReadyRows, parts_of, position_of, read_packed
from replay_service.corpus.ingest.status import MOST_NAMED, IngestProgress, OnProgress, status_of
from replay_service.corpus.shards.sources import Listing, Shard, check_readable, look_into, printable
from replay_service.errors import CorpusError, EmptyCorpus, ReplayError
from replay_service.language.model import faster_precision
from replay_service.language.packing import id_dtype
from replay_service.language.precision import Precision
from replay_service.language.scoring import RowScorer
from replay_service.ray_session import error_within, in_ray

IsStopped = Callable[[], bool]

STAGING: Final = "staging"


def ingest(
    settings: IngestSettings, on_progress: OnProgress = lambda _: None, is_stopped: IsStopped = lambda: False
) -> Manifest:
    """Make the corpus that `settings` describe, or bring what is new in its source into it. Ray must run.

    Each finished segment is a generation that can be rehearsed from. Stopped, it leaves what it has done, and called
    again it goes on there.

    Raises:
        UnusableSource: when a shard is missing, damaged or without the text column; nothing is changed then.
        SourceForbidden: when a shard lies in none of the allowed places; nothing is changed then.
        EmptyCorpus: when the shards hold no text.
        ModelMismatch: when the corpus is there, scored by another model.
        CorpusError: when it is there, made with other settings, when a shard in it has changed, when another ingest
            writes it, or when the model cannot be used.
    """
    with _writing(settings, on_progress, is_stopped) as tell:
        return _ingest(settings, look_into(settings.source, settings.allowed), tell, is_stopped)


def follow(
    settings: IngestSettings,
    wait: Callable[[], bool],
    on_progress: OnProgress = lambda _: None,
    is_stopped: IsStopped = lambda: False,
) -> Manifest:
    """As `ingest`, and then again and again: `wait` returns True when it is time to look for new shards, else False.

    A shard that comes later is taken when two looks in a row find it the same, so that none is read half-written.
    """
    with _writing(settings, on_progress, is_stopped) as tell:
        found = look_into(settings.source, settings.allowed)
        manifest = _ingest(settings, found, tell, is_stopped)
        while not is_stopped() and wait():
            seen, found = set(found.shards), look_into(settings.source, settings.allowed)
            settled = [shard for shard in found.shards if shard in seen]
            manifest = _ingest(settings, found._replace(shards=settled), tell, is_stopped)
        return manifest


@contextmanager
def _writing(settings: IngestSettings, on_progress: OnProgress, is_stopped: IsStopped) -> Iterator[OnProgress]:
    """Nobody else writes the corpus meanwhile, and its status says how it goes.

    A corpus that was not there before is not there after an error that came before its first rows.
    """
    folder = settings.corpus_folder
    was_there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _alone(folder, settings.name), status_of(folder, on_progress, is_stopped) as tell:
            yield tell
    except ReplayError:
        if not was_there and not (folder / "staging").exists():
            shutil.rmtree(folder)
        raise


def _ingest(settings: IngestSettings, found: Listing, tell: OnProgress, is_stopped: IsStopped) -> Manifest:
    folder = settings.corpus_folder
    standing = read_manifest(folder) if (folder / MANIFEST_NAME).exists() else None
    if standing is not None and standing.kind != settings.kind:
        raise CorpusError(f"corpus {settings.name!r} exists already, of kind {standing.kind}; choose another name")
    if settings.allowed is not None:
        check_safetensors(settings.model, partial(_file_of_model, settings.model))
    base = base_model_of(settings, standing, found.shards)
    plan = _planned(settings, base, standing, found.shards)
    if plan.standing is not None and not plan.pending and not (folder / STAGING).exists():
        return plan.standing
    for each in plan.pending:
        check_readable(each.shard, settings.columns)
    if base.classes is None:
        _check_runs(settings, base.checkpoint)
    work = _prepared(settings, base, plan, found.passed_over)
    pending = {each.listed.key: each.shard for each in plan.pending}
    before = [each for each in plan.begun if each.key not in pending]
    write_shard_list(folder, [*before, *(each.listed for each in plan.pending)])
    return work.run([each.key for each in before], pending, tell, is_stopped)


def _file_of_model(model: str, file: str) -> str | None:
    """A file of a model in a local folder, or of the hub, which is asked for it; None when the model has none."""
    from transformers.utils import cached_file

    try:
        path: str | None = cached_file(model, file, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise CorpusError(f"no model could be loaded from {model!r}: {error}") from error
    return path


class _Plan(NamedTuple):
    """What an ingest finds and has to do."""

    standing: Manifest | None
    begun: list[ListedShard]
    """The shards of which rows stand in the corpus."""
    pending: list[Pending]
    """What is to be read, in order; the first may be one that was begun."""


def _planned(settings: IngestSettings, base: BaseModel, standing: Manifest | None, found: Sequence[Shard]) -> _Plan:
    if standing is not None:
        check_fits(standing, settings, base)
    begun = read_shard_list(settings.corpus_folder)[: _num_begun(standing)]
    is_half_done = standing is not None and standing.num_rows_of_next_shard > 0
    return _Plan(standing, begun, in_order(begun, is_half_done, found))


def _num_begun(manifest: Manifest | None) -> int:
    """How many shards of the list have rows in the corpus."""
    return 0 if manifest is None else manifest.num_shards + (manifest.num_rows_of_next_shard > 0)


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Nobody else writes the corpus meanwhile; the lock goes with the process."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CorpusError(f"another ingest writes corpus {name!r}; wait for it, or stop it") from None
        for broken_off in (*folder.glob(".*.[0-9]*"), *folder.glob("segments/.*.[0-9]*")):
            broken_off.unlink()  # a killed ingest was writing it
        yield


def _prepared(settings: IngestSettings, base: BaseModel, plan: _Plan, passed_over: list[str]) -> "_Work":
    standing = plan.standing
    recipe = settings.recipe(base.identity) if standing is None else standing.recipe
    staging = settings.corpus_folder / STAGING / digest(recipe, str(base.ends), str(id_dtype(base.num_logits)))
    staging.mkdir(parents=True, exist_ok=True)
    if base.tokenizer_rules:
        write_tokenizer(settings.corpus_folder, base.tokenizer_rules)
    precision = _precision(settings, staging) if standing is None else _as_precision(standing.precision)
    pipeline = PipelineSettings(
        model=settings.model,
        ends=base.ends,
        vocab_size=base.vocab_size,
        seq_len=base.seq_len,
        columns=settings.columns,
        precision=precision,
        batch_size=settings.batch_size,
        num_scorers=settings.num_scorers,
        gpus_per_scorer=settings.gpus_per_scorer,
        threads_per_scorer=max(1, (os.cpu_count() or 1) // settings.num_scorers),
        topk=settings.topk,
        features=settings.num_clusters > 0,
        staging=staging,
        classes=base.classes,
    )
    manifest = standing or Manifest.of_nothing(
        name=settings.name,
        model=settings.model,
        tokenizer_fingerprint=base.tokenizer_fingerprint,
        vocab_size=base.vocab_size,
        separator_id=base.ends.separator_id,
        seq_len=base.seq_len,
        precision=precision,
        num_quantiles=settings.num_quantiles,
        partition_by=settings.partition_by,
        topk=settings.topk,
        recipe=recipe,
        classes=base.classes,
        bos_id=base.ends.bos_id,
        checkpoint_fingerprint=base.checkpoint,
        settings=settings.parts(),
    )
    return _Work(settings, pipeline, manifest, passed_over)


@dataclass(slots=True)
class _Work:
    """One ingest: what is staged, and what of it stands in segments."""

    settings: IngestSettings
    pipeline: PipelineSettings
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
            parts = parts_of(self.pipeline.staging, key)
            self._ready[key] = ReadyRows()
            self._ready[key].add(parts)
            self._position[key] = max((position_of(self.pipeline.staging, each) for each in parts[-1:]), default=0)
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
        return run_pipeline(left, self.pipeline) if left else iter(())

    def _growing(self, keys: list[str]) -> GrowingCorpus:
        return GrowingCorpus(
            folder=self.settings.corpus_folder,
            staging=self.pipeline.staging,
            shards=keys,
            manifest=self.manifest,
            rows_per_segment=self.settings.rows_per_segment,
            group_of=self._group_of(),
        )

    def _group_of(self) -> GroupOf:
        if self.settings.num_clusters:
            return Clusters(self.settings.corpus_folder, self.settings.num_clusters).group_of
        return _domain if self.settings.columns.group is None else _column

    def _num_ready(self, key: str) -> int:
        return self._ready[key].stop

    def _forget_finished(self, keys: list[str]) -> None:
        for key in keys:
            packed = read_packed(self.pipeline.staging, key)
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


def _precision(settings: IngestSettings, staging: Path) -> Precision:
    """The precision to score in; chosen once, so that an ingest that is resumed elsewhere goes on in the same one."""
    if settings.precision != "auto":
        return settings.precision
    if settings.kind == "classification":
        return "float32"
    chosen = staging / "precision"
    if not chosen.exists():
        num_gpus = 1.0 if on_gpu() else 0.0
        temporary = chosen.with_suffix(".partial")
        temporary.write_text(in_ray(num_gpus, faster_precision))
        temporary.rename(chosen)
    return _as_precision(chosen.read_text())


@lru_cache(maxsize=1)
def _check_runs(settings: IngestSettings, checkpoint: str) -> None:
    """Try the base model where it is to score, once in a process for all looks at shards; raises CorpusError.

    Args:
        settings: of the ingest.
        checkpoint: the fingerprint of the model, which may be replaced between two looks.
    """
    precision: Precision = "bf16" if settings.precision == "bf16" else "float32"
    num_gpus = settings.gpus_per_scorer if on_gpu() else 0.0
    in_ray(num_gpus, _make_scorer, settings.model, precision, settings.seq_len)


def _make_scorer(model: str, precision: Precision, seq_len: int) -> None:
    RowScorer(model, precision, batch_size=1, seq_len=seq_len)


def _as_precision(name: str) -> Precision:
    return "bf16" if name == "bf16" else "float32"
