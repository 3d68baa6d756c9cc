"""The manifest: all that a reader must know of a corpus, in one file that is replaced atomically."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from replay_service.errors import CorpusError, UnknownCorpus
from replay_service.sampling.partition import Extent, Partition

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 2


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment file of the corpus; its last four members are those of the `SegmentFile` that was written."""

    file: str
    """Its path below the corpus, parts separated by slashes."""
    num_rows: int
    extents: list[tuple[int, int, int]]
    """(stratum, first row, number of rows), in row order."""
    num_bytes: int
    offsets: dict[str, int]
    row_types: dict[str, str]
    checksum: int
    generation: int = 1
    """The generation of the corpus that brought it."""


@dataclass(frozen=True, slots=True)
class DomainSummary:
    """What a corpus holds of one domain."""

    name: str
    num_samples: int
    num_tokens: int
    mean_base_loss_nats: float
    """Mean over its samples."""
    quantile_edges_nats: list[float]
    """The inner edges between its strata."""
    generation: int = 1
    """The generation of the corpus that brought it; domains stand in the order of these."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A generation of a corpus."""

    name: str
    generation: int
    model: str
    tokenizer_fingerprint: str
    vocab_size: int
    separator_id: int
    seq_len: int
    precision: str
    num_quantiles: int
    settings_fingerprint: str
    """Equal for ingests of the same shards with the same settings."""
    num_documents: int
    num_set_aside: int
    """Rows without usable text."""
    domains: list[DomainSummary]
    segments: list[Segment]

    @property
    def num_samples(self) -> int:
        return sum(segment.num_rows for segment in self.segments)

    @property
    def num_tokens(self) -> int:
        return sum(domain.num_tokens for domain in self.domains)

    def partition(self, generation: int | None = None) -> Partition:
        """The partition that an earlier generation had, or that of this one."""
        last = self.generation if generation is None else generation
        extents = [
            Extent(stratum, number, first_row, num_rows)
            for number, segment in enumerate(self.segments)
            if segment.generation <= last
            for stratum, first_row, num_rows in segment.extents
        ]
        groups = tuple(domain.name for domain in self.domains if domain.generation <= last)
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
        content["segments"] = [Segment(**each) for each in content["segments"]]
        return Manifest(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorpusError(f"{path} is damaged: {error}") from error


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
