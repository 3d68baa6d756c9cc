"""States of a run as its journal tells them: a snapshot, and the events after it."""

from dataclasses import dataclass

from replay_service.ledger.journal import Journal, RunRecord, Snapshot
from replay_service.sampling.events import Created, Rewound, surviving
from replay_service.sampling.run_state import RunState, fold
from replay_service.sampling.state_bytes import from_bytes


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


def latest(journal: Journal, record: RunRecord) -> Restored:
    """The state after all events of a run."""
    held = _held(journal.latest_snapshot(record.run), record.created)
    num_events = held.num_events
    for entry in journal.entries(record.run, num_events):
        # A rewind leaves a snapshot, so there is none among the events after the latest one.
        assert not isinstance(entry.event, Rewound | Created)
        fold(held.state, entry.event)
        num_events += 1
    return Restored(held.state, num_events, held.attempt, held.snapshot_seq)


def after_step(journal: Journal, record: RunRecord, step: int) -> RunState:
    """The fold of all events of steps up to `step`, from the latest snapshot that holds no later one."""
    held = _held(journal.latest_snapshot(record.run, most_next_step=step + 1), record.created)
    entries = (entry.event for entry in journal.entries(record.run, held.num_events))
    for event in surviving((event for event in entries if not isinstance(event, Rewound | Created)), step):
        fold(held.state, event)
    return held.state


def _held(snapshot: Snapshot | None, created: Created) -> Restored:
    """The state in a snapshot; without one, that of a new run."""
    if snapshot is None:
        return Restored(RunState.initial(created), 1, 1, 1)
    return Restored(from_bytes(snapshot.state), snapshot.seq, snapshot.attempt, snapshot.seq)
