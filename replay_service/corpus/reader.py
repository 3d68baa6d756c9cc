"""The reading side: corpora by name, samples by address."""

import threading
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from replay_service.corpus.manifest import MANIFEST_NAME, Manifest, read_manifest
from replay_service.corpus.segments import SampleRows, gather, map_segment
from replay_service.errors import UnknownCorpus
from replay_service.names import is_name
from replay_service.sampling.partition import ROW_BITS, ROW_MASK, Partition

Int64Array = NDArray[np.int64]


class Corpus:
    """One generation of a corpus, its segments mapped into memory when they are first read."""

    def __init__(self, folder: Path) -> None:
        self.manifest: Manifest = read_manifest(folder)
        self._folder = folder
        self._segments: dict[int, SampleRows] = {}

    @property
    def generation(self) -> int:
        return self.manifest.generation

    @cached_property
    def partition(self) -> Partition:
        return self.manifest.partition()

    def partition_of(self, generation: int) -> Partition:
        return self.partition

    def rows(self, sample_ids: Int64Array) -> SampleRows:
        """The samples at the given addresses (int64 [n], of this corpus), in their order."""
        number, row = sample_ids >> ROW_BITS, sample_ids & ROW_MASK
        if not len(sample_ids):
            return self._segment(0).take(sample_ids)
        return gather(number, row, self._segment)

    def base_losses(self, sample_ids: Int64Array) -> NDArray[np.float64]:
        """Base losses of the samples at the given addresses, float64 [n], nats per token."""
        number, row = sample_ids >> ROW_BITS, sample_ids & ROW_MASK
        losses = np.empty(len(sample_ids))
        for segment in np.unique(number):
            here = number == segment
            losses[here] = self._segment(int(segment)).base_loss[row[here]]
        return losses

    def _segment(self, number: int) -> SampleRows:
        if number not in self._segments:
            self._segments[number] = map_segment(self._folder / self.manifest.segments[number].file)
        return self._segments[number]


class CorpusStore:
    """The corpora in a folder, one subfolder each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._open: dict[str, Corpus] = {}

    def names(self) -> list[str]:
        """The corpora that are ready to be rehearsed from."""
        return sorted(path.parent.name for path in self._folder.glob(f"*/{MANIFEST_NAME}") if is_name(path.parent.name))

    def get(self, name: str) -> Corpus:
        """An open corpus; raises UnknownCorpus."""
        if not is_name(name):
            raise UnknownCorpus(f"there is no corpus {name!r}; GET /v1/corpora lists them")
        with self._lock:
            if name not in self._open:
                self._open[name] = Corpus(self._folder / name)
            return self._open[name]
