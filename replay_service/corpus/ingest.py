"""Ingest: from a folder of shards to a corpus. Killed at any moment and called again, it goes on where it was."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import ray
from numpy.typing import NDArray

from replay_service.corpus.manifest import (
    MANIFEST_NAME,
    DomainSummary,
    Manifest,
    Segment,
    read_manifest,
    sync_folder,
    write_manifest,
)
from replay_service.corpus.pipeline import PipelineSettings, run_pipeline
from replay_service.corpus.segment_file import write_segment
from replay_service.corpus.segments import gather
from replay_service.corpus.sources import Columns, Shard, check_readable, find_shards
from replay_service.corpus.staging import Packed, StagedRows, is_done, mark_done, read_packed
from replay_service.corpus.strata import assign_strata, quantile_edges
from replay_service.errors import CorpusError, EmptyCorpus, ModelMismatch, ReplayError
from replay_service.language.model import Precision, check_seq_len, faster_precision, load_config
from replay_service.language.tokenizer import fingerprint, load_tokenizer, separator_id
from replay_service.names import NAME_RULE, is_name
from replay_service.sampling.partition import extents_of


@dataclass(frozen=True, slots=True)
class IngestSettings:
    """What to make a corpus of.

    Attributes:
        source: a shard or a folder of shards.
        folder: the folder of corpora; the corpus becomes a subfolder.
        name: the corpus's name.
        model: the base model, a local folder or a hub name.
        seq_len: tokens a row.
        num_quantiles: strata a domain.
        precision: `auto` takes bfloat16 where this machine is faster in it.
        batch_size: rows the base model scores at once.
        num_scorers: actors that hold the base model, each on its share of the CPUs or on a GPU of its own.
        rows_per_segment: rows of one segment file.
    """

    source: Path
    folder: Path
    name: str
    model: str
    seq_len: int = 512
    columns: Columns = field(default_factory=Columns)
    num_quantiles: int = 8
    precision: Precision | Literal["auto"] = "auto"
    batch_size: int = 8
    num_scorers: int = 1
    rows_per_segment: int = 65_536

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise CorpusError(f"{self.name!r} cannot name a corpus: a name is {NAME_RULE}")
        for name, least in (
            ("seq_len", 2),
            ("num_quantiles", 1),
            ("batch_size", 1),
            ("num_scorers", 1),
            ("rows_per_segment", 1),
        ):
            if getattr(self, name) < least:
                raise CorpusError(f"{name} must be at least {least}, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """How far an ingest is; shards that an earlier one finished count as done."""

    shards_done: int
    num_shards: int
    num_rows: int
    num_tokens: int


OnProgress = Callable[[IngestProgress], None]


def ingest(settings: IngestSettings, on_progress: OnProgress = lambda _: None) -> Manifest:
    """Make the corpus that `settings` describe, or return it if it is there already. Ray must run.

    Raises:
        UnusableSource: when a shard is missing, damaged or without the text column; nothing is changed then.
        EmptyCorpus: when the shards hold no text.
        ModelMismatch: when the corpus is there, made with another tokenizer.
        CorpusError: when it is there, made from other shards or settings, or when the model cannot be used.
    """
    shards = find_shards(settings.source)
    for shard in shards:
        check_readable(shard, settings.columns)
    check_seq_len(load_config(settings.model), settings.seq_len)
    tokenizer = load_tokenizer(settings.model)
    tokens = fingerprint(tokenizer)
    inputs = _inputs_fingerprint(settings, tokens)
    keyed = {_shard_key(shard, settings.source): shard for shard in shards}
    everything = _digest(inputs, str(settings.num_quantiles), str(settings.rows_per_segment), *keyed)
    folder = settings.folder / settings.name
    if (folder / MANIFEST_NAME).exists():
        return _standing(folder, everything, tokens, settings)
    staging = folder / "staging" / inputs
    staging.mkdir(parents=True, exist_ok=True)
    pipeline = PipelineSettings(
        model=settings.model,
        separator_id=separator_id(tokenizer),
        vocab_size=len(tokenizer),
        seq_len=settings.seq_len,
        columns=settings.columns,
        precision=_precision(settings, staging),
        batch_size=settings.batch_size,
        num_scorers=settings.num_scorers,
        threads_per_scorer=max(1, (os.cpu_count() or 1) // settings.num_scorers),
        staging=staging,
    )
    _stage_all(keyed, pipeline, on_progress)
    manifest = _build(settings, pipeline, list(keyed), tokens, everything)
    write_manifest(folder, manifest)
    shutil.rmtree(folder / "staging")
    return manifest


def _standing(folder: Path, everything: str, tokenizer_fingerprint: str, settings: IngestSettings) -> Manifest:
    manifest = read_manifest(folder)
    if manifest.settings_fingerprint == everything:
        return manifest
    if manifest.tokenizer_fingerprint != tokenizer_fingerprint:
        raise ModelMismatch(
            f"corpus {settings.name!r} was made with {manifest.model!r}, whose tokenizer differs from that of "
            f"{settings.model!r}; choose another corpus name"
        )
    raise CorpusError(
        f"corpus {settings.name!r} exists already, made from other shards or with other settings; choose another name "
        f"or remove {folder}"
    )


def _stage_all(shards: dict[str, Shard], pipeline: PipelineSettings, on_progress: OnProgress) -> None:
    staging = pipeline.staging
    left = {key: shard for key, shard in shards.items() if not is_done(staging, key)}
    for key in left:
        shutil.rmtree(staging / key, ignore_errors=True)
    rows = dict.fromkeys(left, 0)
    num_tokens = 0
    on_progress(IngestProgress(len(shards) - len(left), len(shards), 0, 0))
    try:
        for part in run_pipeline(left, pipeline) if left else ():
            rows[part.shard_key] += part.num_rows
            num_tokens += part.num_tokens
            if rows[part.shard_key] == read_packed(staging, part.shard_key).num_rows:
                mark_done(staging, part.shard_key)
            done = sum(is_done(staging, key) for key in shards)
            on_progress(IngestProgress(done, len(shards), sum(rows.values()), num_tokens))
    except Exception as error:
        raise _ours(error) from error
    for key in left:
        mark_done(staging, key)
    on_progress(IngestProgress(len(shards), len(shards), sum(rows.values()), num_tokens))


def _ours(error: BaseException) -> BaseException:
    """The error that one of our stages raised, out of those that Ray wraps around it; else `error` itself."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ReplayError):
            return inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    return error


def _build(
    settings: IngestSettings, pipeline: PipelineSettings, shard_keys: list[str], tokens: str, everything: str
) -> Manifest:
    staged = StagedRows(pipeline.staging, shard_keys)
    if not len(staged):
        raise EmptyCorpus(f"the {len(shard_keys)} shards of {settings.source} hold no text to make a corpus of")
    names, domain = np.unique(staged.domain, return_inverse=True)
    edges = quantile_edges(staged.base_loss, domain, len(names), settings.num_quantiles)
    stratum = assign_strata(staged.base_loss, domain, edges)
    packed = [read_packed(pipeline.staging, key) for key in shard_keys]
    return Manifest(
        name=settings.name,
        generation=1,
        model=settings.model,
        tokenizer_fingerprint=tokens,
        vocab_size=pipeline.vocab_size,
        separator_id=pipeline.separator_id,
        seq_len=settings.seq_len,
        precision=pipeline.precision,
        num_quantiles=settings.num_quantiles,
        settings_fingerprint=everything,
        num_documents=_total(packed, "num_documents"),
        num_set_aside=_total(packed, "num_set_aside"),
        domains=[_summary(str(name), staged, domain == i, edges[i]) for i, name in enumerate(names)],
        segments=_write_segments(settings, staged, stratum),
    )


def _total(packed: list[Packed], name: str) -> int:
    return sum(getattr(each, name) for each in packed)


def _summary(name: str, staged: StagedRows, members: NDArray[np.bool_], edges: NDArray[np.float64]) -> DomainSummary:
    return DomainSummary(
        name=name,
        num_samples=int(members.sum()),
        num_tokens=int(staged.length[members].sum()),
        mean_base_loss_nats=float(staged.base_loss[members].mean(dtype=np.float64)),
        quantile_edges_nats=edges.tolist(),
    )


def _write_segments(settings: IngestSettings, staged: StagedRows, stratum: NDArray[np.int64]) -> list[Segment]:
    """Write all rows, sorted by stratum, into segments; what an earlier, killed ingest left there is replaced."""
    folder = settings.folder / settings.name / "segments"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    order = np.argsort(stratum, kind="stable")
    segments = []
    for number, first in enumerate(range(0, len(order), settings.rows_per_segment)):
        index = order[first : first + settings.rows_per_segment]
        rows = gather(*staged.address(index), staged.file)
        rows = rows.in_strata(stratum[index].astype(np.int32))
        file = f"segments/{number:08d}.arrow"
        written = write_segment(folder.parent / file, rows)
        extents = [(each.stratum, each.first_row, each.num_rows) for each in extents_of(number, stratum[index])]
        segments.append(Segment(file, len(index), extents, **asdict(written)))
    sync_folder(folder)
    return segments


def _precision(settings: IngestSettings, staging: Path) -> Precision:
    """The precision to score in; chosen once, so that an ingest that is resumed elsewhere goes on in the same one."""
    if settings.precision != "auto":
        return settings.precision
    chosen = staging / "precision"
    if not chosen.exists():
        num_gpus = 1 if ray.cluster_resources().get("GPU", 0) > 0 else 0
        chosen.write_text(ray.get(ray.remote(num_gpus=num_gpus)(faster_precision).remote()))
    return "bf16" if chosen.read_text() == "bf16" else "float32"


def _inputs_fingerprint(settings: IngestSettings, tokenizer_fingerprint: str) -> str:
    """Equal for settings that give equal scored rows of a shard."""
    columns = json.dumps(asdict(settings.columns), sort_keys=True)
    return _digest(settings.model, tokenizer_fingerprint, str(settings.seq_len), columns, settings.precision)


def _shard_key(shard: Shard, source: Path) -> str:
    """Changes when the file is another one."""
    status = shard.path.stat()
    return _digest(str(shard.path.relative_to(source.parent)), str(status.st_size), str(status.st_mtime_ns))


def _digest(*words: str) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]
