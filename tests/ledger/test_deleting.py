"""A run is deleted, and another one gets its name, while several processes know it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from sqlalchemy import Engine, func, select

from replay_service.corpus.reading.reader import Corpus
from replay_service.errors import JournalUnavailable, RunOpen, RunTaken, UnknownRun
from replay_service.ledger.audit import verify
from replay_service.ledger.database import open_database
from replay_service.ledger.forgetting_curves import CurveReader
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import OwnerLimits, RunOwner
from replay_service.ledger.owners import Owners
from replay_service.ledger.samples import SampleQuery
from replay_service.ledger.schema import metadata
from tests.ledger.worlds import before_query, bytes_of, create, ids_of, losses_of, read_state, record_of

NUM_QUERIES = 6
"""Of who opens a run: to take it, its record, and what a restore reads."""

OTHER = {"global_batch_size": 24, "injection_ratio": "0.5", "seed": 9}
EVERYTHING: list[Callable[[RunOwner], object]] = [
    lambda owner: owner.window(0, 1, 64).plans,
    lambda owner: owner.window(3, 9, 64).plans,
    lambda owner: owner.report(losses_of(0, [1, 2])),
    lambda owner: owner.configure({"floor": 0.4}),
    lambda owner: owner.adopt(),
    lambda owner: owner.rewind(-1),
    lambda owner: owner.close(),
    lambda owner: owner.delete(),
    lambda owner: read_state(owner, lambda state: state.next_step),
]


@dataclass(frozen=True, slots=True)
class Process:
    """What one process holds of the ledger."""

    engine: Engine
    journal: Journal
    owners: Owners
    corpus: Corpus

    def num_rows(self, run: str) -> dict[str, int]:
        """How many rows each table has of a run."""
        with self.engine.connect() as connection:
            return {
                table.name: connection.execute(
                    select(func.count()).select_from(table).where(table.c.run == run)
                ).scalar_one()
                for table in metadata.tables.values()
                if "run" in table.c
            }


@pytest.fixture
def processes(database_url: str, corpus: Corpus) -> Iterator[tuple[Process, Process]]:
    """Two processes on one database."""
    engines = [open_database(database_url) for _ in range(2)]
    journals = [Journal(each) for each in engines]
    first, second = (
        Process(engine, journal, Owners(journal, lambda _: corpus, OwnerLimits(snapshot_every=3)), corpus)
        for engine, journal in zip(engines, journals, strict=True)
    )
    yield first, second
    for each in journals:
        each.close()


def train(process: Process, run: str = "tuning") -> RunOwner:
    """A new run with plans, reports, snapshots, statistics of samples, and curves."""
    create(process.owners, record_of(run))
    owner = process.owners.get(run)
    for step in range(6):
        (plan,) = owner.window(step, 1, 64).plans
        owner.report(losses_of(step, ids_of(plan)))
    assert process.journal.samples(run, SampleQuery("sample_id", False, 10), process.corpus.partition).samples
    assert CurveReader(process.journal).read(run, work_s=60.0).points
    return owner


def delete(process: Process, run: str = "tuning") -> None:
    process.owners.get(run).close()
    process.owners.delete(run)


def replace(process: Process, run: str) -> None:
    """Delete the run and give its name to one that samples otherwise."""
    delete(process, run)
    assert create(process.owners, record_of(run, **OTHER))
    process.owners.get(run).window(0, 12, 64)


def test_a_run_that_is_not_closed_is_not_deleted(processes: tuple[Process, Process]) -> None:
    first, _ = processes
    owner = train(first)
    before, rows = bytes_of(owner), first.num_rows("tuning")
    assert 0 not in rows.values()
    with pytest.raises(RunOpen, match="close it first"):
        first.owners.delete("tuning")
    assert (bytes_of(owner), first.num_rows("tuning")) == (before, rows)
    owner.window(6, 1, 64)


def test_nothing_is_left_of_a_deleted_run_and_all_of_the_others(processes: tuple[Process, Process]) -> None:
    first, second = processes
    train(first)
    other = train(first, "other")
    before, rows = bytes_of(other), first.num_rows("other")
    delete(first)
    assert set(first.num_rows("tuning").values()) == {0}
    for each in processes:
        with pytest.raises(UnknownRun):
            each.owners.get("tuning")
        with pytest.raises(UnknownRun):
            each.owners.delete("tuning")
    assert [each.run for each in second.journal.runs()] == ["other"]
    assert (bytes_of(other), first.num_rows("other")) == (before, rows)


def test_a_run_of_the_same_name_begins_anew(processes: tuple[Process, Process]) -> None:
    first, second = processes
    before = train(first)
    plans = before.window(0, 6, 64).plans
    delete(first)
    assert create(first.owners, record_of())
    owner = first.owners.get("tuning")
    assert read_state(owner, lambda state: (state.next_step, int(state.totals.samples.sum()))) == (0, 0)
    assert [ids_of(each) for each in owner.window(0, 1, 64).plans] == [ids_of(plans[0])]
    assert verify(second.journal, second.journal.run("tuning")).holds
    query = SampleQuery("sample_id", False, 10)
    assert second.journal.samples("tuning", query, second.corpus.partition).samples == []


def image_of_journal(journal: Journal, run: str) -> list[tuple[object, ...]]:
    return [(each.seq, each.attempt, type(each.event), each.event.step) for each in journal.entries(run)]


@pytest.mark.parametrize("has_failed", [False, True], ids=["well", "after a failed commit"])
def test_who_held_the_run_writes_nothing_to_another_one_of_its_name(
    processes: tuple[Process, Process], has_failed: bool
) -> None:
    first, second = processes
    for number, use in enumerate(EVERYTHING):
        run = f"run-{number}"
        held = train(first, run)
        if has_failed:
            held._lease.failure = JournalUnavailable("an earlier write failed")
        replace(second, run)
        expected = image_of_journal(second.journal, run)
        with pytest.raises(RunTaken):
            use(held)
        assert held.is_taken
        assert held.window_at_hand(0, 1) is None
        assert image_of_journal(second.journal, run) == expected
        assert first.owners.get(run).record == second.journal.run(run)


@pytest.mark.parametrize("number", range(2, NUM_QUERIES + 1))
def test_who_opens_a_run_while_another_one_gets_its_name_mixes_nothing(
    processes: tuple[Process, Process], number: int
) -> None:
    first, second = processes
    train(second)

    def take_and_replace() -> None:
        with pytest.raises(RunTaken):
            read_state(second.owners.get("tuning"), bytes)
        replace(second, "tuning")

    with before_query(first.engine, number, take_and_replace), pytest.raises(RunTaken):
        first.owners.get("tuning").window(12, 1, 64)
    owner = first.owners.get("tuning")
    assert owner.record == second.journal.run("tuning")
    assert len(owner.window(12, 1, 64).plans[0].rows) == 12
