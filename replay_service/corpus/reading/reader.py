"""The reading side: corpora by name, samples by address."""

import functools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from replay_service.corpus.format.layout import Layout
from replay_service.corpus.format.manifest import Manifest
from replay_service.corpus.format.records import SampleRows
from replay_service.corpus.format.texts import Texts, no_tokenizer
from replay_service.corpus.reading.blocks import Blocks, FilesChanged
from replay_service.corpus.reading.damage import SegmentDamage
from replay_service.corpus.reading.folders import DEFAULT_CACHE_BYTES, Folder, LocalFolder, open_folder
from replay_service.errors import CorpusError, CorpusUnavailable, UnknownCorpus
from replay_service.names import is_name
from replay_service.sampling.base_results import BaseResults
from replay_service.sampling.partition import Partition
from replay_service.wire.samples import SampleColumns

Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_log = structlog.get_logger()


class Corpus:
    """One generation of a corpus. Its segments are opened when they are first read.

    Raises, from every method that reads samples:
        CorpusUnavailable: when storage does not answer. Damage raises nothing; `damage` tells of it.
    """

    def __init__(
        self, folder: Path | Folder, manifest: Manifest | None = None, earlier: "Corpus | None" = None
    ) -> None:
        """The generation that `manifest` describes, by default the newest one in the folder.

        What is known of another generation, `earlier`, is taken over.
        """
        if isinstance(folder, Path):
            folder = LocalFolder(folder)
        self.manifest = folder.manifest() if manifest is None else manifest
        self.is_remote = folder.is_remote
        self._folder = folder
        self._layout = Layout(self.manifest.segments)
        self._blocks: Blocks = folder.blocks(self._layout, None if earlier is None else earlier._blocks)
        self._partition_of = functools.cache(self.manifest.partition)

    @property
    def generation(self) -> int:
        return self.manifest.generation

    @property
    def record_bytes(self) -> int:
        """Bytes of one sample."""
        return self._layout.record.itemsize

    @functools.cached_property
    def texts(self) -> Texts:
        """The tokenizer of the samples' token ids; raises CorpusError when the corpus has none."""
        rules = self._folder.tokenizer()
        if rules is None:
            raise no_tokenizer(self.manifest.name)
        return Texts(rules)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Stays the same in later generations of this corpus."""
        return self.manifest.fingerprint

    @property
    def partition(self) -> Partition:
        return self.partition_of(self.generation)

    def partition_of(self, generation: int) -> Partition:
        """The partition that a generation up to this one had; its strata keep their numbers in later ones.

        Raises:
            CorpusUnavailable: when the generation is not there yet.
        """
        self.need(generation)
        return self._partition_of(generation)

    def need(self, generation: int) -> None:
        """Raises CorpusUnavailable when the generation is not there yet."""
        if generation > self.generation:
            raise CorpusUnavailable(
                f"corpus {self.manifest.name!r} is at generation {self.generation} here, and generation {generation} "
                "was asked for; see to it that all services read the same corpora"
            )

    def rows(self, sample_ids: Int64Array) -> SampleRows:
        """The samples at the given addresses (int64 [n], of this corpus), in their order.

        A sample that lies in a damaged part of its segment has length 0, and zeros in every other field.
        """
        records, _ = self._read(self._layout.positions(sample_ids), self._layout.record)
        return SampleRows.of_records(records)

    def columns(self, sample_ids: Int64Array) -> SampleColumns:
        """As `rows`, without records: an array a field."""
        at_hand = self.columns_at_hand(sample_ids)
        return self.rows(sample_ids) if at_hand is None else at_hand

    def columns_at_hand(self, sample_ids: Int64Array) -> SampleColumns | None:
        """The result of `rows`, if its blocks were found intact before and nothing must be fetched; else None."""
        positions = self._layout.positions(sample_ids)
        held = self._blocks.all_intact()
        if held is None:
            held = self._blocks.found_intact(self._layout.blocks(positions, self._layout.record.itemsize))
        if held is None:
            return None
        stretches = self._layout.stretches
        try:
            taken = held.take(positions, [type_.itemsize for type_ in stretches])
        except FilesChanged:
            return None
        columns: dict[str, NDArray[Any]] = {}
        for type_, part in zip(stretches, taken, strict=True):
            fields = part.view(type_)
            columns |= {name: fields[name] for name in type_.names or ()}
        return SampleColumns.of(columns)

    def base_results(self, sample_ids: Int64Array) -> BaseResults:
        """What the base model made of the samples at the given addresses (int64 [n])."""
        offset, type_ = self._layout.base_results
        found, readable = self._read(self._layout.positions(sample_ids) + offset, type_)
        losses = found["base_loss"].astype(np.float64)
        if readable is not None:
            losses[~readable] = np.nan
        if "label" in (self._layout.record.names or ()):
            num_right, num_predictions = found["base_correct"][:, 0] & 1, np.ones(len(found), dtype=np.int64)
        else:
            num_right = np.add.reduce(np.bitwise_count(found["base_correct"]), axis=1, dtype=np.int64)
            num_predictions = np.maximum(found["length"], 1) - 1
        return BaseResults(losses, num_predictions - num_right)

    def read_ahead(self, sample_ids: Int64Array) -> None:
        """Begin to fetch samples that will be read soon, if they are remote; returns at once."""
        if self.is_remote and len(sample_ids):
            positions = self._layout.positions(sample_ids)
            self._blocks.read_ahead(self._layout.blocks(positions, self._layout.record.itemsize))

    def damage(self) -> list[SegmentDamage]:
        """The damage found in segments that were read, in their order."""
        return self._blocks.damage()

    def _read(self, positions: Int64Array, type_: np.dtype[Any]) -> tuple[NDArray[Any], BoolArray | None]:
        """The record at each position, [n], zeros where damaged, and which could be read; None for all of them."""
        # A segment that changes for the second time within a second is damaged, and not looked at: this ends.
        while True:
            try:
                return self._read_once(positions, type_)
            except FilesChanged as changed:
                self._blocks.look_again(changed)

    def _read_once(self, positions: Int64Array, type_: np.dtype[Any]) -> tuple[NDArray[Any], BoolArray | None]:
        whole = [type_.itemsize]
        held = self._blocks.all_intact()
        if held is None:
            blocks = self._layout.blocks(positions, type_.itemsize)
            held = self._blocks.hold(blocks)
            readable: BoolArray = np.all(held.intact(blocks), axis=0)
            if not readable.all():
                found = np.zeros(len(positions), dtype=type_)
                found[readable] = held.take(positions[readable], whole)[0].view(type_)
                return found, readable
        return held.take(positions, whole)[0].view(type_), None


class CorpusStore:
    """The corpora in a folder, one subfolder each.

    Args:
        folder: a path, the URL of a folder in object storage, or a folder that is open.
        cache_bytes: the most that is kept of blocks from object storage.
        refresh_s: how long a manifest in object storage may be out of date; a local one is looked at every time.
        monotonic: a clock, seconds.
    """

    def __init__(
        self,
        folder: str | Path | Folder,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        refresh_s: float = 5.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = open_folder(folder, cache_bytes) if isinstance(folder, str | Path) else folder
        self._refresh_s = refresh_s if self._folder.is_remote else 0.0
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._open: dict[str, LatestCorpus] = {}

    @property
    def is_remote(self) -> bool:
        """Whether the corpora are in object storage."""
        return self._folder.is_remote

    def close(self) -> None:
        """Stop reading ahead."""
        self._folder.close()

    def check(self) -> None:
        """Raises CorpusUnavailable when the folder of the corpora cannot be reached; costs the same however many."""
        self._folder.check()

    def names(self) -> list[str]:
        """The corpora that are ready to be rehearsed from."""
        return sorted(name for name in self._folder.corpora() if is_name(name))

    def opened(self) -> list[Corpus]:
        """The corpora that were read here, by name; nothing is looked at."""
        with self._lock:
            return [latest.corpus for _, latest in sorted(self._open.items())]

    def at(self, name: str, generation: int) -> Corpus:
        """The corpus at this generation or a later one, whichever is at hand; raises UnknownCorpus.

        Generations never change, so the manifest is looked at only where this one is not at hand.
        """
        latest = self._open.get(name)
        return latest.corpus if latest is not None and latest.corpus.generation >= generation else self.get(name)

    def get(self, name: str) -> Corpus:
        """The newest generation of a corpus; raises UnknownCorpus."""
        if not is_name(name):
            raise UnknownCorpus(f"there is no corpus {name!r}; GET /v1/corpora lists them")
        with self._lock:
            latest = self._open.get(name)
        if latest is None:
            latest = LatestCorpus(self._folder.child(name), self._refresh_s, self._monotonic)
            with self._lock:
                latest = self._open.setdefault(name, latest)
        return latest.get()


class LatestCorpus:
    """The newest generation of a corpus, looked for when it is asked for. Generations share their caches.

    A corpus that was read once goes on to be served when its manifest is damaged, gone or out of reach later: runs
    depend on it.
    """

    def __init__(self, folder: Folder, refresh_s: float, monotonic: Callable[[], float]) -> None:
        self._folder = folder
        self._refresh_s = refresh_s
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._problem = ""
        self._looked_at = monotonic()
        self._version = folder.version()
        self.corpus = Corpus(folder)
        """The newest that was found so far."""

    def get(self) -> Corpus:
        is_due = self._monotonic() - self._looked_at >= self._refresh_s
        # Those that ask meanwhile need not wait for the manifest.
        if is_due and self._lock.acquire(blocking=False):
            try:
                self._refresh()
                self._problem = ""
            except CorpusError as error:
                self._tell(error.detail)
            finally:
                self._lock.release()
        return self.corpus

    def _refresh(self) -> None:
        self._looked_at = self._monotonic()
        version = self._folder.version()
        if version is not None and version == self._version:
            return
        manifest = self._folder.manifest()
        if manifest != self.corpus.manifest:
            self.corpus = Corpus(self._folder, manifest, self.corpus)
        self._version = version

    def _tell(self, problem: str) -> None:
        if problem != self._problem:
            _log.warning("manifest not read again", corpus=self.corpus.manifest.name, problem=problem)
        self._problem = problem
