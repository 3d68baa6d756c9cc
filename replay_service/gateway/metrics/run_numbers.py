"""What the state of a run tells, made in the background while somebody scrapes.

An estimate of forgetting takes some milliseconds a domain, and reading a run that nobody owns here takes a restore.
So a scrape takes what is at hand, and asks for what has changed. The thread that makes it rests most of the time.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray
from sqlalchemy.exc import SQLAlchemyError

from replay_service.errors import ReplayError
from replay_service.ledger.readers import RunReaders
from replay_service.ledger.records import RunHead, RunRecord
from replay_service.ledger.run_view import RunView
from replay_service.sampling.forgetting import FirstVisits, Forgetting
from replay_service.sampling.run_state import RunState

REST: Final = 19.0
"""How many times as long as it works the thread rests: it takes a twentieth of a core."""

_log = structlog.get_logger()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunNumbers:
    """Numbers of a run at one point of its journal.

    Attributes:
        corpus: the name of its corpus.
        policy, signal: of its configuration.
        rows_due: rows that the ratios in force ask the planned steps to rehearse.
        repeat_share: the share of the draws now that are repeats.
        budget_nats: None without an `auto` ratio.
        num_unmeasured: planned samples that were reported as not measured, or never reported.
        domains: by name; None where the corpus cannot be read.
    """

    corpus: str
    policy: str
    signal: str
    next_step: int
    num_pending: int
    rows_due: float
    rows_rehearsed: int
    injection_ratio: float
    num_unmeasured: int
    repeat_share: float
    budget_nats: float | None
    forgetting: Forgetting
    domains: Mapping[str, "DomainNumbers"]


@dataclass(frozen=True, slots=True)
class DomainNumbers:
    """Numbers of one domain of a run; `damage` is None before any damage was reported."""

    forgetting: Forgetting
    damage: float | None

    @property
    def rank(self) -> float:
        """The greater, the more has surely been forgotten; -inf where nothing can be said."""
        return -np.inf if self.forgetting.low is None else self.forgetting.low


Domains = Callable[[RunRecord, int], Sequence[str]]
"""Gives the names of the first so many domains of a run."""


def read_numbers(readers: RunReaders, run: str, domains: Domains) -> RunNumbers:
    """Read a run's numbers; raises what `RunReaders.read` raises."""
    # The estimates are made outside: nobody waits for them.
    record, facts, visits, damage = readers.read(run, _seen)
    corpus, *by_domain = visits.of_all()
    rates = [None] * len(by_domain) if damage is None else damage.tolist()
    found = [DomainNumbers(each, rate) for each, rate in zip(by_domain, rates, strict=True)]
    names = domains(record, len(found))
    return RunNumbers(record.corpus, **facts, forgetting=corpus, domains=dict(zip(names, found, strict=True)))


def _seen(view: RunView) -> tuple[RunRecord, dict[str, Any], FirstVisits, NDArray[np.float64] | None]:
    state = view.state
    return view.record, _facts(state), state.first_visits(), _damage_by_domain(state)


def _facts(state: RunState) -> dict[str, Any]:
    config, rehearsed = state.config, state.rows_rehearsed
    pending = sum(each.num_awaited for each in state.pending.values())
    return {
        "policy": config.policy,
        "signal": config.signal,
        "next_step": state.next_step,
        "num_pending": pending,
        "rows_due": float(state.rows_due_so_far),
        "rows_rehearsed": rehearsed,
        "injection_ratio": float(config.schedule.at(state.next_step, state.ratio)),
        "num_unmeasured": max(0, rehearsed - int(state.totals.samples.sum()) - pending),
        "repeat_share": state.repeat_share(),
        "budget_nats": config.budget.nats if config.is_auto else None,
    }


def _damage_by_domain(state: RunState) -> NDArray[np.float64] | None:
    """The mean damage rate over the samples of each domain, float64 [num_domains]; None before any damage."""
    if not state.has_damage():
        return None
    rates, sizes = (each.reshape(-1, state.num_quantiles) for each in (state.damage_rates(), state.cursors.sizes))
    found: NDArray[np.float64] = (rates * sizes).sum(axis=1) / np.maximum(sizes.sum(axis=1), 1)
    return found


class RunWatch(Generic[T]):
    """What is made of runs, as they were a little while ago.

    Args:
        read: makes something of a run.
        rest: how many times as long as it works its thread rests.
    """

    def __init__(
        self,
        read: Callable[[str], T],
        rest: float = REST,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._rest = rest
        self._monotonic = monotonic
        self._lock = threading.Condition()
        self._wanted: dict[str, object] = {}
        """The present point of each run that was asked for."""
        self._made: dict[str, tuple[object, T | None]] = {}
        """The point of which the numbers are, those that were made last at the end.

        Numbers are None where the run could not be read, and the point is None where it is to be tried again.
        """
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def latest(self, heads: Sequence[RunHead]) -> dict[str, T]:
        """The numbers at hand of these runs, and of no others from now on. What has changed is read soon."""
        with self._lock:
            self._wanted = {each.run: _point_of(each) for each in heads}
            # What could not be read is tried again, after all others: it keeps its place among those that were.
            self._made = {
                run: (None if numbers is None else point, numbers)
                for run, (point, numbers) in self._made.items()
                if run in self._wanted
            }
            found = {run: numbers for run, (_, numbers) in self._made.items() if numbers is not None}
            if self._thread is None and not self._is_closed and self._next() is not None:
                self._thread = threading.Thread(target=self._catch_up, name="run-watch", daemon=True)
                self._thread.start()
            return found

    def close(self) -> None:
        """End the thread."""
        with self._lock:
            self._is_closed = True
            self._lock.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _catch_up(self) -> None:
        """Read one changed run after the other, until all are up to date."""
        while True:
            with self._lock:
                run = None if self._is_closed else self._next()
                if run is None:
                    self._thread = None
                    return
                point = self._wanted[run]
            began = self._monotonic()
            numbers = self._numbers(run)
            rest_s = self._rest * (self._monotonic() - began)
            with self._lock:
                self._made.pop(run, None)
                self._made[run] = point, numbers
                self._lock.wait_for(lambda: self._is_closed, rest_s)

    def _next(self) -> str | None:
        """The run that was read longest ago, of those that have changed since."""
        order = [*(run for run in self._wanted if run not in self._made), *self._made]
        changed = (run for run in order if run in self._wanted and self._made.get(run, _NEVER)[0] != self._wanted[run])
        return next(changed, None)

    def _numbers(self, run: str) -> T | None:
        try:
            return self._read(run)
        except (ReplayError, SQLAlchemyError) as error:
            _log.debug("a run has no metrics now", run=run, problem=str(error))
        except Exception as error:
            # One run that cannot be read must not end the metrics of all others.
            _log.error("a run has no metrics", run=run, exc_info=error)
        return None


_NEVER: Final = (None, None)


def _point_of(head: RunHead) -> object:
    """Tells the end of a run's journal, and the run from others of its name."""
    return head.point.incarnation, head.point.attempt, head.point.end_seq
