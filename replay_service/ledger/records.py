"""What the journal's tables hold, as objects: runs, how far they are, their snapshots, and events in their places."""

from dataclasses import dataclass

from sqlalchemy import Row

from replay_service.ledger.event_rows import created_of, event_of
from replay_service.ledger.progress import Point
from replay_service.sampling.events import Created, JournalEvent
from replay_service.sampling.run_config import RunConfig


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as it was created."""

    run: str
    corpus: str
    created: Created
    """The first event of its journal."""
    created_at: str

    @property
    def config(self) -> RunConfig:
        return self.created.config


@dataclass(frozen=True, slots=True)
class RunHead:
    """How far a run is, in its row of `runs` alone.

    Attributes:
        corpus_fingerprint: of the corpus that it began on; None if that was not written down.
        generation: of the corpus that it sees; None: that which it was created on.
        job_end: the first step that is none of the job's, as it said when it ended; -1 if it has not.
    """

    run: str
    corpus: str
    corpus_fingerprint: str | None
    generation: int | None
    point: Point
    next_step: int
    closed: bool
    job_end: int


@dataclass(frozen=True, slots=True)
class RunOverview:
    """A run and how far it is, all from columns: nothing is folded."""

    record: RunRecord
    head: RunHead
    generation: int
    config: RunConfig

    @property
    def point(self) -> Point:
        return self.head.point

    @property
    def next_step(self) -> int:
        return self.head.next_step

    @property
    def closed(self) -> bool:
        return self.head.closed


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run's state after its first `seq` events; `attempt` counts its rewinds, from 1."""

    seq: int
    attempt: int
    next_step: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """An event where it stands in the journal."""

    seq: int
    attempt: int
    event: JournalEvent
    committed_at: int | None = None
    """Milliseconds since 1970-01-01 UTC; None of events that an earlier release wrote. Nothing folds it."""


def entry_of(row: Row[tuple[object, ...]]) -> Entry:
    return Entry(row.seq, row.attempt, event_of(row), row.committed_at)


def record_of(row: Row[tuple[object, ...]]) -> RunRecord:
    return RunRecord(row.run, row.corpus, created_of(row.payload), row.created_at)


def point_of(row: Row[tuple[object, ...]], end_seq: int, attempt: int) -> Point:
    times = row.planned_at, row.reported_at, row.trained_at
    return Point((row.incarnation, row.created_at), row.owner_epoch, end_seq, attempt, *times)


def head_of(row: Row[tuple[object, ...]]) -> RunHead:
    point = point_of(row, row.num_events, row.attempt)
    of_corpus = row.corpus, row.corpus_fingerprint, row.generation
    return RunHead(row.run, *of_corpus, point, row.next_step, row.closed, row.job_end)


def overview_of(row: Row[tuple[object, ...]]) -> RunOverview:
    record = record_of(row)
    return RunOverview(
        record=record,
        head=head_of(row),
        generation=record.created.generation if row.generation is None else row.generation,
        config=record.config if row.config is None else RunConfig.from_json(row.config.decode()),
    )


def snapshot_of(row: Row[tuple[object, ...]]) -> Snapshot:
    return Snapshot(row.seq, row.attempt, row.next_step, row.state)
