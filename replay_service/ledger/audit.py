"""The audit: a run's journal folded again from its first event, and its events as a table for analysts."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from replay_service.ledger.event_log import Change, changes_of
from replay_service.ledger.journal import Journal
from replay_service.ledger.records import Entry, RunRecord
from replay_service.sampling.events import (
    Configured,
    Created,
    Event,
    JournalEvent,
    Planned,
    Reported,
    Rewound,
    surviving,
)
from replay_service.sampling.fold import fold
from replay_service.sampling.run_state import RunState
from replay_service.sampling.state_bytes import STATE_VERSION, to_bytes, version_of


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of folding a journal again."""

    num_events: int
    num_snapshots: int
    """Those of this release's version of the state; others cannot be compared."""
    wrong_snapshots: list[int]
    """The event numbers of snapshots that differ from the fold."""
    missing_events: list[int]
    """Numbers that no event has, although later ones do."""

    @property
    def holds(self) -> bool:
        return not (self.wrong_snapshots or self.missing_events)


def verify(journal: Journal, record: RunRecord) -> Verdict:
    """Fold all events of a run from the first one, and compare with every snapshot of this version, byte for byte.

    After a missing event there is nothing to compare with: from there on events are only counted.
    """
    snapshots = {each.seq: each for each in journal.snapshots(record.run) if _is_comparable(each.state)}
    state, standing = RunState.initial(record.created), list[Event]()
    wrong: list[int] = []
    missing: list[int] = []
    expected = 0
    for entry in journal.entries(record.run):
        missing += range(expected, entry.seq)
        expected = entry.seq + 1
        if missing:
            continue
        if isinstance(entry.event, Rewound):
            standing = list(surviving(standing, entry.event.step))
            state = _folded(standing, record)
        elif not isinstance(entry.event, Created):
            standing.append(entry.event)
            fold(state, entry.event)
        snapshot = snapshots.get(expected)
        if snapshot is not None and snapshot.state != to_bytes(state):
            wrong.append(snapshot.seq)
    return Verdict(expected, len(snapshots), wrong, missing)


def _is_comparable(state: bytes) -> bool:
    """Whether a snapshot must equal the fold: also one that is no state at all."""
    try:
        return version_of(state) == STATE_VERSION
    except ValueError:
        return True


def _folded(events: list[Event], record: RunRecord) -> RunState:
    state = RunState.initial(record.created)
    for event in events:
        fold(state, event)
    return state


def export_parquet(journal: Journal, run: str, path: Path) -> int:
    """Write a run's journal as Parquet, one row a sample of an event; returns the number of rows.

    An event without samples has one row whose sample columns are null. Only `created` and `adopted` events have a
    `generation`, and `sizes`: the number of samples of each stratum. `config` is the whole configuration as JSON, of
    `created` and `configured` events. `change` is what an event changed: a JSON object of the settings by name, each
    with its value before and after. `injection_ratio` and `reason` are those of `adjusted` events. `committed_at` is
    null for events that an earlier release wrote.
    """
    num_rows, changes = 0, changes_of(journal, run)
    with pq.ParquetWriter(path, _SCHEMA) as writer:
        for entry in journal.entries(run):
            table = _table(entry, changes.get(entry.seq))
            writer.write_table(table)
            num_rows += len(table)
    return num_rows


_SCHEMA = pa.schema(
    [
        ("seq", pa.int64()),
        ("attempt", pa.int32()),
        ("committed_at", pa.timestamp("ms", tz="UTC")),
        ("kind", pa.string()),
        ("step", pa.int64()),
        ("policy_version", pa.int64()),
        ("rank", pa.int32()),
        ("sample_id", pa.int64()),
        ("stratum", pa.int32()),
        ("times_drawn", pa.int32()),
        ("probability", pa.float64()),
        ("loss_nats", pa.float64()),
        ("base_loss_nats", pa.float64()),
        ("num_tokens", pa.int32()),
        ("num_flips", pa.int32()),
        ("num_gains", pa.int32()),
        ("generation", pa.int64()),
        ("sizes", pa.list_(pa.int64())),
        ("config", pa.string()),
        ("change", pa.string()),
        ("injection_ratio", pa.string()),
        ("reason", pa.string()),
    ]
)


def _table(entry: Entry, changes: dict[str, Change] | None) -> pa.Table:
    event = entry.event
    rows = _rows(event)
    num = 1 if rows is None else len(rows)
    shared = {
        "seq": entry.seq,
        "attempt": entry.attempt,
        "committed_at": entry.committed_at,
        "kind": type(event).__name__.lower(),
        "step": event.step,
        "policy_version": getattr(event, "policy_version", None),
        "rank": getattr(event, "rank", None),
        "generation": getattr(event, "generation", None),
        "sizes": getattr(event, "sizes", None),
        "config": event.config.to_json() if isinstance(event, Created | Configured) else None,
        "change": None if changes is None else _as_json(changes),
        "injection_ratio": getattr(event, "injection_ratio", None),
        "reason": getattr(event, "reason", None),
    }
    of_samples = {} if rows is None else {name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names or ()}
    columns = [
        pa.array(of_samples[field.name], field.type)
        if field.name in of_samples
        else pa.array([shared.get(field.name)] * num, field.type)
        for field in _SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=_SCHEMA)


def _as_json(changes: dict[str, Change]) -> str:
    return json.dumps({name: asdict(each) for name, each in changes.items()})


def _rows(event: JournalEvent) -> np.ndarray | None:
    return event.rows if isinstance(event, Planned | Reported) and len(event.rows) else None
