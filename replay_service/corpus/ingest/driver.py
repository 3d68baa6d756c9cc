"""Ingest: from shards to a corpus that grows. Killed at any moment and called again, it goes on where it was.

<corpus>/manifest.json       what can be rehearsed from: replaced with every generation
<corpus>/shards.jsonl        the shards of the corpus, in the order of their rows
<corpus>/segments/           rows
<corpus>/set_aside/          the rows of shards that could not be used, and why, a file a shard
<corpus>/clusters.npy        the centres of its clusters, if it is partitioned by them
<corpus>/staging/<digest>/   what is scored and does not stand in segments yet; the digest is of how it was made
<corpus>/status.json         how the latest ingest is going

A corpus that is published (`corpora_url`) keeps its segments and set-aside rows in object storage alone.
"""

import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from replay_service.corpus.format.manifest import MANIFEST_NAME, Manifest, read_manifest
from replay_service.corpus.format.texts import write_tokenizer
from replay_service.corpus.ingest.base_model import BaseModel, base_model_of
from replay_service.corpus.ingest.fitting import check_fits
from replay_service.corpus.ingest.model_files import check_safetensors
from replay_service.corpus.ingest.node_checks import check_nodes_see
from replay_service.corpus.ingest.pipeline import actors_of, on_gpu
from replay_service.corpus.ingest.pipeline_settings import PipelineSettings
from replay_service.corpus.ingest.settings import IngestSettings, digest
from replay_service.corpus.ingest.shard_list import ListedShard, Pending, in_order, read_shard_list, write_shard_list
from replay_service.corpus.ingest.status import OnProgress, WhyWaiting, status_of
from replay_service.corpus.ingest.work import STAGING, IsStopped, Work
from replay_service.corpus.publishing import Published
from replay_service.corpus.shards.sources import Listing, Shard, check_readable, look_into
from replay_service.errors import CorpusError, ReplayError
from replay_service.language.model import faster_precision
from replay_service.language.packing import id_dtype
from replay_service.language.precision import Precision
from replay_service.language.scoring import RowScorer
from replay_service.ray_cluster import check_room, why_waiting
from replay_service.ray_session import in_ray


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
        RayUnavailable: when too few CPUs or GPUs are free, or a node cannot read the model or a shard.
    """
    with _writing(settings, on_progress, is_stopped, why_waiting) as tell:
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
    resting = threading.Event()

    def rest() -> bool:
        resting.set()
        is_time = wait()
        resting.clear()
        return is_time

    def reason() -> str | None:
        return None if resting.is_set() else why_waiting()

    with _writing(settings, on_progress, is_stopped, reason) as tell:
        found = look_into(settings.source, settings.allowed)
        manifest = _ingest(settings, found, tell, is_stopped)
        while not is_stopped() and rest():
            seen, found = set(found.shards), look_into(settings.source, settings.allowed)
            settled = [shard for shard in found.shards if shard in seen]
            manifest = _ingest(settings, found._replace(shards=settled), tell, is_stopped)
        return manifest


@contextmanager
def _writing(
    settings: IngestSettings, on_progress: OnProgress, is_stopped: IsStopped, reason: WhyWaiting
) -> Iterator[OnProgress]:
    """Nobody else writes the corpus meanwhile, and its status says how it goes.

    A corpus that was not there before is not there after an error that came before its first rows.
    """
    folder = settings.corpus_folder
    was_there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (
            _alone(folder, settings.name),
            status_of(folder, on_progress, is_stopped, why_waiting=reason) as tell,
        ):
            if settings.corpora_url is not None:
                Published(settings.corpora_url, folder).bring()
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
    if plan.pending:
        actors = actors_of(settings.num_scorers, settings.gpus_per_scorer)
        check_room(actors, "this ingest", "take fewer scorers (--scorers)")
        check_nodes_see(settings, base.checkpoint, [each.shard for each in plan.pending])
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


def _prepared(settings: IngestSettings, base: BaseModel, plan: _Plan, passed_over: list[str]) -> Work:
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
    return Work(settings, pipeline, staging, manifest, passed_over)


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
