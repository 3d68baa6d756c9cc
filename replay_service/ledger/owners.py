"""Every run's owner, restored from the journal when it is first asked for."""

import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from replay_service.errors import InvalidRun, RunExists
from replay_service.ledger.journal import Journal, RunRecord
from replay_service.ledger.owner import DEFAULT_LIMITS, OwnerLimits, RunOwner
from replay_service.sampling.partition import Partition


class SampledCorpus(Protocol):
    """What the ledger needs of a corpus."""

    @property
    def generation(self) -> int: ...

    @property
    def partition(self) -> Partition: ...

    def base_losses(self, sample_ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Base losses in nats per token, float64 [n]."""
        ...


class Owners:
    """One owner a run; `corpus_of` gives a corpus by name or raises UnknownCorpus."""

    def __init__(
        self, journal: Journal, corpus_of: Callable[[str], SampledCorpus], limits: OwnerLimits = DEFAULT_LIMITS
    ) -> None:
        self._journal = journal
        self._limits = limits
        self._corpus_of = corpus_of
        self._lock = threading.Lock()
        self._owners: dict[str, RunOwner] = {}

    def create(self, record: RunRecord) -> bool:
        """Create a run; False if it is there already with the same corpus and configuration.

        Raises:
            InvalidRun: when the corpus holds fewer samples than one step rehearses.
            RunExists: when the name is taken by another configuration.
        """
        self._check_fits(record)
        try:
            self._journal.create_run(record)
        except RunExists:
            standing = self._journal.run(record.run)
            if (standing.corpus, standing.config) == (record.corpus, record.config):
                return False
            raise RunExists(
                f"run {record.run!r} exists with another configuration; choose another name, or ask for the same one"
            ) from None
        return True

    def get(self, run: str) -> RunOwner:
        """The owner of a run; raises UnknownRun."""
        with self._lock:
            if run not in self._owners:
                record = self._journal.run(run)
                corpus = self._corpus_of(record.corpus)
                self._owners[run] = RunOwner(self._journal, record, corpus.partition, corpus.base_losses, self._limits)
            return self._owners[run]

    def _check_fits(self, record: RunRecord) -> None:
        num_samples = self._corpus_of(record.corpus).partition.num_samples
        most = -(-record.config.ratio * record.config.global_batch_size // 1)
        if most > num_samples:
            raise InvalidRun(
                f"corpus {record.corpus!r} holds {num_samples} samples, but a step would rehearse {most}; "
                "lower injection_ratio or global_batch_size, or ingest more text"
            )
