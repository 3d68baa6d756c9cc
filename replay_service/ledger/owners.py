"""Every run's owner, restored from the journal when it is first asked for."""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from replay_service.errors import InvalidRun, RunExists
from replay_service.ledger.journal import Journal
from replay_service.ledger.meter import NO_METER, Meter
from replay_service.ledger.owner import DEFAULT_LIMITS, OwnerLimits, RunOwner
from replay_service.ledger.records import RunRecord
from replay_service.ledger.sampled_corpus import SampledCorpus, check_same
from replay_service.sampling.events import Created
from replay_service.sampling.run_config import RunConfig

_log = structlog.get_logger()

LATELY_S: Final = 600.0
_MOST_COUNTED: Final = 1000


@dataclass(frozen=True, slots=True)
class Ownership:
    """Whether another process answers for a run that this one has owned.

    Attributes:
        is_elsewhere: another process has taken the run from this one.
        times_taken_back: how often this one has taken it back in the last ten minutes.
    """

    is_elsewhere: bool = False
    times_taken_back: int = 0


class Owners:
    """One owner a run; `corpus_of` gives a corpus by name or raises UnknownCorpus."""

    def __init__(
        self,
        journal: Journal,
        corpus_of: Callable[[str], SampledCorpus],
        limits: OwnerLimits = DEFAULT_LIMITS,
        meter: Meter = NO_METER,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._meter = meter
        self._journal = journal
        self._limits = limits
        self._corpus_of = corpus_of
        self._lock = threading.Lock()
        self._owners: dict[str, RunOwner] = {}
        self._taken_back_at = defaultdict[str, deque[float]](partial(deque, maxlen=_MOST_COUNTED))

    def create(self, run: str, corpus: str, config: RunConfig, created_at: str) -> bool:
        """Create a run on the latest generation of a corpus; False if it is there already, on the same corpus and with
        the same configuration.

        Raises:
            InvalidRun: when the corpus holds fewer samples than one step rehearses.
            RunExists: when the name is taken by another configuration.
            CorpusReplaced: when it is there already, and began on another corpus of that name.
        """
        sampled = self._corpus_of(corpus)
        partition = sampled.partition_of(sampled.generation)
        _check_fits(corpus, partition.num_samples, config)
        sizes = tuple(partition.sizes.tolist())
        created = Created(config, sampled.generation, partition.num_quantiles, sizes, sampled.fingerprint)
        try:
            self._journal.create_run(RunRecord(run, corpus, created, created_at))
        except RunExists:
            standing = self._journal.run(run)
            if (standing.corpus, standing.config) == (corpus, config):
                check_same(standing, sampled.fingerprint)
                return False
            raise RunExists(
                f"run {run!r} exists with another configuration; choose another name, or ask for the same one"
            ) from None
        return True

    def at_hand(self, run: str) -> RunOwner | None:
        """The owner of a run, if it is in memory."""
        return self._owners.get(run)

    def ownership(self, run: str, owner_epoch: int) -> Ownership:
        """Whether the owner of this epoch, as the journal names it, is another one than that in memory, if any is."""
        owner, since = self.at_hand(run), self._monotonic() - LATELY_S
        with self._lock:
            times = self._taken_back_at.get(run, ())
            return Ownership(owner is not None and owner.epoch < owner_epoch, sum(each >= since for each in times))

    def delete(self, run: str) -> None:
        """Remove a closed run and its journal for good.

        Raises:
            UnknownRun: when there is none.
            RunOpen: when it is not closed.
        """
        self.get(run).delete()
        with self._lock:
            self._owners.pop(run, None)
            self._taken_back_at.pop(run, None)

    def get(self, run: str) -> RunOwner:
        """The owner of a run; raises UnknownRun.

        A run that another process has taken is taken back: whoever is asked owns it. That is meant for a process that
        has followed another one; if both are asked in turn every answer is right, but costs a restore.
        """
        with self._lock:
            if run not in self._owners or self._owners[run].is_taken:
                former = self._owners.pop(run, None)
                self._owners[run] = RunOwner(self._journal, run, self._corpus_of, self._limits, meter=self._meter)
                if former is not None:
                    self._taken_back_at[run].append(self._monotonic())
                    _log.warning("took the run back from another process", run=run)
            return self._owners[run]


def _check_fits(corpus: str, num_samples: int, config: RunConfig) -> None:
    most = config.most_rows()
    if most > num_samples:
        raise InvalidRun(
            f"corpus {corpus!r} holds {num_samples} samples, but a step would rehearse {most}; "
            "lower injection_ratio or global_batch_size, or ingest more text"
        )
