"""Runs are read by processes that do not own them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from replay_service.corpus.reading.reader import Corpus
from replay_service.errors import JournalUnavailable, UnknownRun
from replay_service.ledger import restoring
from replay_service.ledger.database import open_database
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import OwnerLimits, RunOwner
from replay_service.ledger.owners import Owners
from replay_service.ledger.readers import RunReaders
from replay_service.ledger.run_view import RunView
from replay_service.sampling.state_bytes import to_bytes
from tests.ledger.worlds import before_query, bytes_of, create, ids_of, losses_of, record_of

NUM_QUERIES = 6
"""Of a first look: the end of the journal, the record, a snapshot, the rewinds, the events, and the end again."""

OTHER = {"global_batch_size": 24, "injection_ratio": "0.5", "seed": 9}


@dataclass(frozen=True, slots=True)
class Process:
    """What one process holds of the ledger."""

    engine: Engine
    journal: Journal
    owners: Owners
    readers: RunReaders

    def look(self, run: str = "tuning") -> tuple[bytes, int, int]:
        """The state of a run, the number of its last event, and its attempt."""
        return self.readers.read(run, seen)


def seen(view: RunView) -> tuple[bytes, int, int]:
    return to_bytes(view.state), view.point.as_of, view.point.attempt


@contextmanager
def process(url: str, corpus: Corpus, snapshot_every: int = 4) -> Iterator[Process]:
    engine = open_database(url)
    journal = Journal(engine)
    owners = Owners(journal, lambda _: corpus, OwnerLimits(snapshot_every=snapshot_every))
    try:
        yield Process(engine, journal, owners, RunReaders(journal, owners, most_runs=2))
    finally:
        journal.close()


@pytest.fixture
def processes(database_url: str, corpus: Corpus) -> Iterator[tuple[Process, Process]]:
    """A process that reads, and one that owns the run `tuning`, which has planned and reported six steps."""
    with process(database_url, corpus) as reader, process(database_url, corpus) as trainer:
        new_run(trainer, "tuning")
        yield reader, trainer


def train(owner: RunOwner, first_step: int, num_steps: int, num_flips: int = 1) -> None:
    for step in range(first_step, first_step + num_steps):
        (plan,) = owner.window(step, 1, 64).plans
        owner.report(losses_of(step, ids_of(plan), num_flips=num_flips))


def new_run(trainer: Process, run: str) -> None:
    create(trainer.owners, record_of(run))
    train(trainer.owners.get(run), 0, 6)


def replace(trainer: Process, run: str = "tuning") -> None:
    """Delete the run and give its name to one that samples otherwise."""
    trainer.owners.get(run).close()
    trainer.owners.delete(run)
    assert create(trainer.owners, record_of(run, **OTHER))
    train(trainer.owners.get(run), 0, 9)


def rewind(trainer: Process, run: str) -> None:
    """Go back and train on, otherwise than before."""
    trainer.owners.get(run).rewind(2)
    train(trainer.owners.get(run), 3, 6, num_flips=9)


def go_on(trainer: Process, run: str) -> None:
    train(trainer.owners.get(run), 6, 5)


CHANGES: list[Callable[[RunOwner], object]] = [
    lambda owner: train(owner, 6, 1),
    lambda owner: train(owner, 7, 9),
    lambda owner: owner.configure({"floor": 0.4}),
    lambda owner: owner.rewind(9),
    lambda owner: train(owner, 10, 1),
    lambda owner: owner.rewind(-1),
    lambda owner: owner.close(),
    lambda owner: owner.rewind(-1),
]


def test_a_reader_sees_what_the_owner_sees_and_takes_nothing(processes: tuple[Process, Process]) -> None:
    reader, trainer = processes
    epoch = reader.journal.point("tuning").owner_epoch
    owner = trainer.owners.get("tuning")
    for change in [lambda _: None, *CHANGES]:
        change(owner)
        assert (
            reader.look() == trainer.look() == (bytes_of(owner), trainer.journal.end_seq("tuning") - 1, owner.attempt)
        )
    assert reader.journal.point("tuning").owner_epoch == epoch
    assert reader.owners.at_hand("tuning") is None
    assert trainer.owners.get("tuning") is owner


def test_the_times_of_the_latest_plan_and_report_are_those_of_their_events(processes: tuple[Process, Process]) -> None:
    reader, _ = processes
    entries = {type(each.event).__name__: each.committed_at for each in reader.journal.entries("tuning")}
    point = reader.readers.read("tuning", lambda view: view.point)
    assert (point.planned_at, point.reported_at) == (entries["Planned"], entries["Reported"])


@contextmanager
def counted(engine: Engine) -> Iterator[list[str]]:
    """The statements that an engine executes."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_the_next_look_goes_on_from_what_was_folded(processes: tuple[Process, Process]) -> None:
    reader, trainer = processes
    reader.look()
    with counted(reader.engine) as statements:
        reader.look()
    assert len(statements) == 1
    train(trainer.owners.get("tuning"), 6, 1)
    with counted(reader.engine) as statements:
        reader.look()
    assert not any("snapshots" in each for each in statements)


def test_few_runs_are_kept_and_all_are_read(processes: tuple[Process, Process]) -> None:
    reader, trainer = processes
    names = [f"run-{i}" for i in range(5)]
    for i, name in enumerate(names):
        create(trainer.owners, record_of(name, seed=i))
        train(trainer.owners.get(name), 0, 2)
    for _ in range(2):
        assert [reader.look(name) for name in names] == [trainer.look(name) for name in names]
        assert len(reader.readers._kept) == 2


def test_a_run_that_is_not_there_is_unknown(processes: tuple[Process, Process]) -> None:
    reader, trainer = processes
    with pytest.raises(UnknownRun, match="nobody"):
        reader.look("nobody")
    reader.look()
    trainer.owners.get("tuning").close()
    trainer.owners.delete("tuning")
    for each in processes:
        with pytest.raises(UnknownRun):
            each.look()


def test_another_run_of_the_name_is_read_anew(processes: tuple[Process, Process]) -> None:
    reader, trainer = processes
    before = reader.look()
    replace(trainer)
    assert reader.look() == trainer.look() != before


def test_the_same_run_created_anew_is_read_anew(processes: tuple[Process, Process]) -> None:
    reader, trainer = processes
    reader.look()
    trainer.owners.get("tuning").close()
    trainer.owners.delete("tuning")
    create(trainer.owners, record_of())
    train(trainer.owners.get("tuning"), 0, 9, num_flips=7)
    assert reader.look() == trainer.look()


def test_a_run_that_is_replaced_under_the_reader_is_not_mixed_with_the_other(
    processes: tuple[Process, Process],
) -> None:
    reader, trainer = processes
    for number in range(2, NUM_QUERIES + 1):
        run = f"run-{number}"
        new_run(trainer, run)
        with before_query(reader.engine, number, partial(replace, trainer, run)):
            found = reader.look(run)
        assert found == trainer.look(run)


def test_a_run_that_goes_on_or_back_under_the_reader_is_read_at_one_point(
    processes: tuple[Process, Process],
) -> None:
    reader, trainer = processes
    for number in range(2, NUM_QUERIES + 1):
        for change in (rewind, go_on):
            run = f"run-{number}-{change.__name__.replace('_', '-')}"
            new_run(trainer, run)
            before = trainer.look(run)
            with before_query(reader.engine, number, partial(change, trainer, run)):
                assert reader.look(run) == before
            assert reader.look(run) == trainer.look(run) != before


def test_a_reader_goes_on_when_the_database_failed_meanwhile(processes: tuple[Process, Process]) -> None:
    reader, trainer = processes
    reader.look()
    train(trainer.owners.get("tuning"), 6, 3)

    def fail() -> None:
        raise OperationalError("SELECT", None, Exception("the connection was lost"))

    with pytest.raises(OperationalError), before_query(reader.engine, 3, fail):
        reader.look()
    assert reader.look() == trainer.look()


def test_an_owner_whose_write_failed_is_not_restored_for_a_reader(processes: tuple[Process, Process]) -> None:
    _, trainer = processes
    owner = trainer.owners.get("tuning")
    before = trainer.look()
    owner._lease.failure = JournalUnavailable("the last write failed")
    assert trainer.look() == before
    assert owner._lease.failure is not None


def test_an_owner_whose_run_was_taken_lets_the_journal_answer(processes: tuple[Process, Process]) -> None:
    other, trainer = processes
    train(other.owners.get("tuning"), 6, 3)
    epoch = other.journal.point("tuning").owner_epoch
    assert trainer.look() == other.look()
    assert other.journal.point("tuning").owner_epoch == epoch


def test_every_look_beside_a_training_owner_is_of_one_point(processes: tuple[Process, Process]) -> None:
    reader, trainer = processes
    owner, is_over = trainer.owners.get("tuning"), threading.Event()
    looks: list[tuple[bytes, int, int]] = []

    def read() -> None:
        while not is_over.is_set() or not looks:
            looks.append(reader.look())

    threads = [threading.Thread(target=read) for _ in range(3)]
    for each in threads:
        each.start()
    train(owner, 6, 20)
    is_over.set()
    for each in threads:
        each.join()
    record = trainer.journal.run("tuning")
    for state, as_of, _ in looks[:: max(1, len(looks) // 10)]:
        assert state == to_bytes(restoring.latest(trainer.journal, record, as_of + 1).state)
    assert not owner.is_taken
