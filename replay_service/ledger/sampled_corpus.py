"""A run's corpus: what the run needs of it, and the check that it still is the one that the run began on."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from replay_service.errors import CorpusReplaced, InvalidRun
from replay_service.ledger.records import RunRecord
from replay_service.sampling.base_results import BaseResults
from replay_service.sampling.partition import Partition
from replay_service.sampling.run_state import RunState

Int64Array = NDArray[np.int64]


class SampledCorpus(Protocol):
    """A corpus, which may grow."""

    @property
    def generation(self) -> int:
        """The latest one."""
        ...

    @property
    def fingerprint(self) -> str:
        """Stays the same while the corpus grows, and is another one if another corpus stands in its place."""
        ...

    def partition_of(self, generation: int) -> Partition:
        """The strata as they were in a generation."""
        ...

    def base_results(self, sample_ids: Int64Array) -> BaseResults:
        """What the base model made of samples (int64 [n])."""
        ...


def check_same(record: RunRecord, fingerprint: str) -> None:
    """Raises CorpusReplaced when another corpus than the run's stands under its name."""
    check_fingerprint(record.corpus, record.created.corpus_fingerprint, fingerprint, f"run {record.run!r}")


def check_fingerprint(corpus: str, wanted: str | None, found: str, run: str = "the run") -> None:
    """Raises CorpusReplaced when a corpus has another fingerprint than the wanted one; None: any will do."""
    if wanted not in (None, found):
        raise CorpusReplaced(
            f"corpus {corpus!r} is not the one that {run} began on, but another one of its name; bring the corpus "
            "back, or create a new run"
        )


def partition_seen(record: RunRecord, state: RunState, corpus: SampledCorpus) -> Partition:
    """The strata that a run sees.

    Raises:
        InvalidRun: when they are not those of the corpus.
    """
    partition = corpus.partition_of(state.generation)
    if not np.array_equal(partition.sizes, state.cursors.sizes):
        raise InvalidRun(
            f"generation {state.generation} of corpus {record.corpus!r} is not the one that run {record.run!r} sees: "
            "its strata have other sizes; bring the corpus back, or create a new run"
        )
    return partition
