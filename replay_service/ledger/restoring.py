"""States of a run as its journal tells them: a snapshot, and the events after it."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from replay_service.ledger.journal import Journal
from replay_service.ledger.records import Entry, RunRecord, Snapshot
from replay_service.sampling.events import Created, Event, Rewound
from replay_service.sampling.fold import fold_all
from replay_service.sampling.run_state import RunState
from replay_service.sampling.state_bytes import STATE_VERSION, from_bytes, version_of

_log = structlog.get_logger()

_EVENTS_AT_ONCE: Final = 1000
"""Many are folded in less time than one after the other, but they are held in memory for it."""


@dataclass(frozen=True, slots=True)
class Restored:
    """A run's state after its first `num_events` events.

    Attributes:
        state: that state.
        num_events: how many events are folded into it.
        attempt: counts the run's rewinds, from 1.
        snapshot_seq: how many of the events stand in the snapshot that it was restored from; 1 without one.
    """

    state: RunState
    num_events: int
    attempt: int
    snapshot_seq: int


def latest(journal: Journal, record: RunRecord, end_seq: int | None = None) -> Restored:
    """The state after the events of a run before number `end_seq`, by default after all of them."""
    return _restored(journal, record, journal.end_seq(record.run) if end_seq is None else end_seq)


def further(journal: Journal, record: RunRecord, held: Restored, end_seq: int) -> Restored:
    """The state after the events before `end_seq`, from one of the same attempt, which must not be used afterwards."""
    return _folded(journal, record, held, end_seq, math.inf)


def after_step(journal: Journal, record: RunRecord, step: int) -> RunState:
    """The fold of all events of steps up to `step`, from the latest snapshot that holds no later one."""
    return _restored(journal, record, journal.end_seq(record.run), step).state


def _restored(journal: Journal, record: RunRecord, end_seq: int, step: int | None = None) -> Restored:
    """The state after all events before `end_seq`, or those of steps up to `step`.

    Another process may append events meanwhile, a rewind too. So every read stops at the same event.
    """
    snapshot = journal.latest_snapshot(record.run, end_seq, None if step is None else step + 1)
    return _folded(journal, record, _held(snapshot, record), end_seq, math.inf if step is None else step)


def _held(snapshot: Snapshot | None, record: RunRecord) -> Restored:
    """The state in a snapshot; without one, or where another release wrote it, that of a new run."""
    if snapshot is not None:
        version = version_of(snapshot.state)
        if version == STATE_VERSION:
            return Restored(from_bytes(snapshot.state), snapshot.seq, snapshot.attempt, snapshot.seq)
        _log.info("folding a journal from its first event", run=record.run, snapshot_version=version)
    return Restored(RunState.initial(record.created), 1, 1, 1)


def _folded(journal: Journal, record: RunRecord, held: Restored, end_seq: int, most_step: float) -> Restored:
    """The fold of the events from those in `held` to before `end_seq`, of steps up to `most_step`, that no later rewind
    has forgotten."""
    events = partial(journal.entries, record.run, held.num_events, end_seq=end_seq)
    rewinds = [entry.event.step for entry in events(kinds=["rewound"])]
    # The last step that counts: before the first rewind, between it and the next one, and so on; from the last.
    bounds = list(itertools.accumulate([most_step, *reversed(rewinds)], min))
    entries, num_events = events(), held.num_events
    while batch := list(itertools.islice(entries, _EVENTS_AT_ONCE)):
        fold_all(held.state, _standing(batch, bounds))
        num_events += len(batch)
    return Restored(held.state, num_events, held.attempt + len(rewinds), held.snapshot_seq)


def _standing(entries: Iterable[Entry], bounds: list[float]) -> Iterator[Event]:
    """The events of steps up to the last of `bounds`, which a rewind takes away."""
    for entry in entries:
        if isinstance(entry.event, Rewound):
            bounds.pop()
        elif not isinstance(entry.event, Created) and entry.event.step <= bounds[-1]:
            yield entry.event
