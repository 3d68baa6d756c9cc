"""A run's corpus: what the run needs of it, and the check that it still is the one that the run began on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from replay_service.errors import CorpusReplaced, CorpusUnavailable, InvalidRun, UnknownCorpus
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


C = TypeVar("C", bound=SampledCorpus)


def corpus_of_run(record: RunRecord, get: Callable[[str], C]) -> C:
    """The corpus of a run.

    Args:
        get: the corpus of a name; raises UnknownCorpus.

    Raises:
        CorpusUnavailable: when it is not here.
        CorpusReplaced: when another one has its name.
    """
    with must_be_here(record.run, record.corpus):
        corpus = get(record.corpus)
    check_same(record, corpus.fingerprint)
    return corpus


@contextmanager
def must_be_here(run: str, corpus: str) -> Iterator[None]:
    """Look for the corpus of a run that exists. If it is not here, another replica may have it, so this is no 404.

    Raises:
        CorpusUnavailable: instead of UnknownCorpus.
    """
    try:
        yield
    except UnknownCorpus as error:
        raise CorpusUnavailable(
            f"corpus {corpus!r}, which run {run!r} rehearses, is not among the corpora of the service that answered; "
            "bring it back, or, where several replicas serve, let them share one `root`, or have the corpora in object "
            "storage (`corpora_url`)"
        ) from error


def check_same(record: RunRecord, fingerprint: str) -> None:
    """Raises CorpusReplaced when another corpus than the run's stands under its name."""
    check_fingerprint(record.corpus, record.created.corpus_fingerprint, fingerprint, f"run {record.run!r}")


def check_fingerprint(corpus: str, wanted: str | None, found: str, run: str = "the run") -> None:
    """Raises CorpusReplaced when a corpus has another fingerprint than the wanted one; None: any will do."""
    if wanted not in (None, found):
        raise CorpusReplaced(
            f"corpus {corpus!r} is not the one that {run} began on, but another one of its name; bring the corpus "
            "back, let all replicas share one `root`, or create a new run"
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
