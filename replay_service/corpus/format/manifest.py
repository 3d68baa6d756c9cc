"""The manifest: all that a reader must know of a corpus, in one file that is replaced atomically."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from replay_service.corpus.format.sketch import QuantileSketch
from replay_service.corpus.format.strata import Group
from replay_service.errors import CorpusError, UnknownCorpus
from replay_service.sampling.partition import Extent, Partition
from replay_service.wire.samples import Kind

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 3


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment file of the corpus; the members from `num_bytes` to `checksum` are those of its `SegmentFile`."""

    file: str
    """Its path below the corpus, parts separated by slashes."""
    num_rows: int
    extents: list[tuple[int, int, int]]
    """(stratum, first row, number of rows), in row order."""
    num_bytes: int
    rows_at: int
    record: dict[str, Any]
    checksum: int
    generation: int
    """The generation of the corpus that brought it."""


@dataclass(frozen=True, slots=True)
class DomainSummary:
    """The share of one domain in a corpus."""

    name: str
    num_samples: int
    num_tokens: int
    mean_base_loss_nats: float
    """Mean over its samples."""
    base_losses: dict[str, int]
    """A QuantileSketch of them."""
    num_entropies: int = 0
    """Samples of which it is known what the base model expected its loss to be."""
    loss_above_entropy_nats: float = 0.0
    """Mean over these of the base loss minus that entropy: about 0 on text that the base model was trained on."""

    def merged(self, more: "DomainSummary") -> "DomainSummary":
        """The domain with more samples of it."""
        num_samples = self.num_samples + more.num_samples
        total_nats = sum(each.mean_base_loss_nats * each.num_samples for each in (self, more))
        num_entropies = self.num_entropies + more.num_entropies
        total_above = sum(each.loss_above_entropy_nats * each.num_entropies for each in (self, more))
        sketches = [QuantileSketch.from_json(each.base_losses) for each in (self, more)]
        return DomainSummary(
            name=self.name,
            num_samples=num_samples,
            num_tokens=self.num_tokens + more.num_tokens,
            mean_base_loss_nats=total_nats / num_samples,
            base_losses=sketches[0].merged(sketches[1]).to_json(),
            num_entropies=num_entropies,
            loss_above_entropy_nats=total_above / max(1, num_entropies),
        )


@dataclass(frozen=True, slots=True)
class Classes:
    """The samples of a classification corpus, and the model that scored them."""

    num_classes: int
    """Labels are 0 to `num_classes` - 1, as the base model numbers its classes."""
    model_fingerprint: str
    """Equal for base models with equal weights."""
    input_shape: list[int] = field(default_factory=list)
    """Of the tensor that is classified; empty for text."""
    input_type: str = ""
    """Of its numbers, as `numpy.dtype` names it: uint8, float32; empty for text."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A generation of a corpus. It tells of earlier ones too: segments and groups say which generation brought them."""

    name: str
    generation: int
    model: str
    tokenizer_fingerprint: str
    vocab_size: int
    separator_id: int
    seq_len: int
    precision: str
    num_quantiles: int
    partition_by: str
    """The kind of group: `domain`, `cluster` or `column <name>`."""
    topk: int
    """How many of the base model's likeliest tokens stand with each position; 0 for none."""
    recipe: str
    """Equal for ingests whose rows may stand in one corpus."""
    num_shards: int
    """How many shards of the shard list stand in the corpus whole."""
    num_rows_of_next_shard: int
    """How many rows of the shard after them stand in it."""
    num_documents: int
    """Documents of those shards."""
    set_aside: dict[str, int]
    """Their rows that could not be used, by reason."""
    domains: list[DomainSummary]
    groups: list[Group]
    """Their strata stand in this order."""
    segments: list[Segment]
    kind: Kind = "language"
    classes: Classes | None = None
    """None in a language corpus."""
    bos_id: int | None = None
    """The token that begins a document; None: nothing does."""
    checkpoint_fingerprint: str = ""
    """Equal for checkpoints of the base model with equal weights; empty where it is not known."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The parts of the recipe; empty in a corpus that an earlier release made."""

    @classmethod
    def of_nothing(
        cls,
        *,
        name: str,
        model: str,
        tokenizer_fingerprint: str,
        vocab_size: int,
        separator_id: int,
        seq_len: int,
        precision: str,
        num_quantiles: int,
        partition_by: str,
        topk: int,
        recipe: str,
        classes: Classes | None = None,
        bos_id: int | None = None,
        checkpoint_fingerprint: str = "",
        settings: dict[str, Any] | None = None,
    ) -> "Manifest":
        """Generation 0, which holds nothing and is never written."""
        return cls(
            name=name,
            generation=0,
            model=model,
            tokenizer_fingerprint=tokenizer_fingerprint,
            vocab_size=vocab_size,
            separator_id=separator_id,
            seq_len=seq_len,
            precision=precision,
            num_quantiles=num_quantiles,
            partition_by=partition_by,
            topk=topk,
            recipe=recipe,
            num_shards=0,
            num_rows_of_next_shard=0,
            num_documents=0,
            set_aside={},
            domains=[],
            groups=[],
            segments=[],
            kind="language" if classes is None else "classification",
            classes=classes,
            bos_id=bos_id,
            checkpoint_fingerprint=checkpoint_fingerprint,
            settings=settings or {},
        )

    @property
    def num_samples(self) -> int:
        return sum(segment.num_rows for segment in self.segments)

    @property
    def num_tokens(self) -> int:
        return sum(domain.num_tokens for domain in self.domains)

    @property
    def num_set_aside(self) -> int:
        return sum(self.set_aside.values())

    @property
    def fingerprint(self) -> str:
        """Of what no later generation changes: how rows are made, and the first segment with its bytes' checksum."""
        first = self.segments[0]
        fixed = (self.recipe, self.model, self.tokenizer_fingerprint, self.seq_len, first.num_rows, first.checksum)
        return hashlib.sha256(json.dumps(fixed).encode()).hexdigest()

    def partition(self, generation: int | None = None) -> Partition:
        """The partition that an earlier generation had, or that of this one."""
        last = self.generation if generation is None else generation
        extents = [
            Extent(stratum, number, first_row, num_rows)
            for number, segment in enumerate(self.segments)
            if segment.generation <= last
            for stratum, first_row, num_rows in segment.extents
        ]
        groups = tuple(group.name for group in self.groups if group.generation <= last)
        return Partition(groups, self.num_quantiles, tuple(sorted(extents)))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the corpus in `folder`.

    Raises:
        UnknownCorpus: when there is none.
        CorpusError: when it is damaged or of a version that this release does not know.
    """
    path = folder / MANIFEST_NAME
    try:
        return parse_manifest(path.read_bytes(), str(path))
    except (FileNotFoundError, NotADirectoryError):
        raise no_corpus(folder.name) from None


def parse_manifest(text: bytes, path: str) -> Manifest:
    """The manifest that stands in the file `path`; raises CorpusError as `read_manifest` does."""
    try:
        content = json.loads(text)
        version = content.pop("format_version")
        if version != FORMAT_VERSION:
            raise CorpusError(f"{path} has format version {version}; this release reads version {FORMAT_VERSION}")
        content["domains"] = [DomainSummary(**each) for each in content["domains"]]
        content["groups"] = [Group(**each) for each in content["groups"]]
        content["segments"] = [_segment(each) for each in content["segments"]]
        if content.get("classes") is not None:
            content["classes"] = Classes(**content["classes"])
        manifest = Manifest(**content)
        if manifest.kind not in get_args(Kind) or (manifest.kind == "classification") != (manifest.classes is not None):
            raise ValueError(f"a corpus of kind {manifest.kind!r}")
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorpusError(f"{path} is damaged: {error}") from error


def _segment(content: dict[str, Any]) -> Segment:
    """JSON has lists where extents are tuples."""
    return Segment(**{**content, "extents": [(stratum, first, num) for stratum, first, num in content["extents"]]})


def no_corpus(name: str) -> UnknownCorpus:
    return UnknownCorpus(f"there is no corpus {name!r}; `replay-service ingest` makes one")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    write_json(folder / MANIFEST_NAME, {"format_version": FORMAT_VERSION, **asdict(manifest)})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file so that a reader, or a crash at any instant, sees the old content or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and new files in `folder` survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
