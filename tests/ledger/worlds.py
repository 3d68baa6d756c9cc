"""A corpus on disk, a journal on SQLite and run owners on both."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from sqlalchemy import Engine, event

from replay_service.corpus.reading.reader import Corpus
from replay_service.errors import RunTaken
from replay_service.ledger.database import open_database
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import RunOwner
from replay_service.ledger.owners import Owners
from replay_service.ledger.records import RunRecord
from replay_service.sampling.events import Created, JournalEvent, Planned
from replay_service.sampling.run_config import RunConfig
from replay_service.sampling.run_state import RunState
from replay_service.sampling.state_bytes import to_bytes
from replay_service.wire.losses import LOSS_ROW
from tests.sampling.worlds import image
from tests.support import make_corpus

T = TypeVar("T")


def made_corpus(folder: Path) -> Corpus:
    make_corpus(folder)
    return Corpus(folder / "wiki")


@contextmanager
def open_journal(place: Path | str) -> Iterator[Journal]:
    """A journal in an SQLite file, or in the database that a URL names."""
    journal = Journal(open_database(f"sqlite:///{place}" if isinstance(place, Path) else place))
    try:
        yield journal
    finally:
        journal.close()


def record_of(
    run: str = "tuning", sizes: Sequence[int] = (20, 20, 20, 20), num_quantiles: int = 2, **config: object
) -> RunRecord:
    """A run on the corpus that `made_corpus` makes, or on one with strata of other sizes."""
    settings: dict[str, object] = {"global_batch_size": 16, "injection_ratio": "0.25", "seed": 3, **config}
    created = Created(RunConfig.from_dict(settings), 1, num_quantiles, tuple(sizes))
    return RunRecord(run, "wiki", created, "2026-01-01T00:00:00Z")


def create(owners: Owners, record: RunRecord) -> bool:
    return owners.create(record.run, record.corpus, record.config, record.created_at)


def owner_of(journal: Journal, corpus: Corpus, run: str = "tuning") -> RunOwner:
    """The owner that a process which has just started would hold."""
    return RunOwner(journal, run, lambda _: corpus)


def losses_of(
    step: int,
    sample_ids: Sequence[int],
    *,
    rank: int = 0,
    loss: float | Sequence[float] = 2.5,
    num_tokens: int = 11,
    num_flips: int = 2,
) -> np.ndarray:
    rows = np.zeros(len(sample_ids), dtype=LOSS_ROW)
    rows["step"], rows["rank"], rows["sample_id"], rows["loss_nats"] = step, rank, sample_ids, loss
    rows["num_tokens"], rows["num_flips"] = num_tokens, num_flips
    return rows


def read_state(owner: RunOwner, view: Callable[[RunState], T]) -> T:
    """The result of `view` on an owner's state, which is restored first if its last write failed."""
    with owner._alone():
        return view(owner._state)


def ids_of(plan: Planned) -> list[int]:
    """The sample ids of a plan, each once."""
    ids: list[int] = np.unique(plan.rows["sample_id"]).tolist()
    return ids


def write(journal: Journal, run: str, first_seq: int, events: Sequence[JournalEvent]) -> None:
    """Write events as a new owner would, and wait until they are durable."""
    journal.append(journal.take(run), 1, first_seq, events)


def events_of(journal: Journal, run: str = "tuning") -> list[JournalEvent]:
    """What happened to a run since it was created."""
    return [entry.event for entry in journal.entries(run, first_seq=1)]


@contextmanager
def before_query(engine: Engine, number: int, then: Callable[[], None]) -> Iterator[None]:
    """Call `then` before an engine executes the statement of this number, from 1: what another process does then."""
    num_executed = 0

    def count(*_: Any) -> None:
        nonlocal num_executed
        num_executed += 1
        if num_executed == number:
            then()

    event.listen(engine, "before_cursor_execute", count)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", count)
    assert num_executed >= number, "it was not called"


def bytes_of(owner: RunOwner) -> bytes:
    """The canonical bytes of the state that an owner holds, also one from whom the run was taken."""
    try:
        return read_state(owner, to_bytes)
    except RunTaken:
        return to_bytes(owner._state)


def image_of(owner: RunOwner) -> dict[str, object]:
    try:
        return read_state(owner, image)
    except RunTaken:
        return image(owner._state)
