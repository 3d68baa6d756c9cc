"""A run is restored while another process, which owns it in turn, writes to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from sqlalchemy import Engine

from replay_service.corpus.reading.reader import Corpus
from replay_service.ledger import restoring
from replay_service.ledger.database import open_database
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import OwnerLimits, RunOwner
from replay_service.sampling.state_bytes import to_bytes
from tests.ledger.worlds import before_query, ids_of, losses_of, open_journal, record_of

NUM_READS = 4
"""Of a restore: the journal's end, a snapshot, the rewinds, the events."""

READS = pytest.mark.parametrize("number", range(2, NUM_READS + 1))
SNAPSHOTS = pytest.mark.parametrize("snapshot_every", [2, 5, 1000])


@dataclass(frozen=True, slots=True)
class Place:
    """A run that has planned and reported some steps: the engine of one process, and the owner in another one."""

    engine: Engine
    journal: Journal
    other: RunOwner

    def latest(self) -> tuple[bytes, int, int]:
        found = restoring.latest(self.journal, self.other.record)
        return to_bytes(found.state), found.num_events, found.attempt

    def after_step(self) -> bytes:
        return to_bytes(restoring.after_step(self.journal, self.other.record, 4))

    def rewind(self) -> None:
        """The other process goes back and trains on, otherwise than before."""
        self.other.rewind(2)
        train(self.other, 3, 3, num_flips=9)


@contextmanager
def run_of_two_processes(url: str, corpus: Corpus, snapshot_every: int) -> Iterator[Place]:
    engine = open_database(url)
    with open_journal(url) as other:
        other.create_run(record_of())
        owner = RunOwner(other, "tuning", lambda _: corpus, OwnerLimits(snapshot_every))
        train(owner, 0, 6)
        journal = Journal(engine)
        try:
            yield Place(engine, journal, owner)
        finally:
            journal.close()


def train(owner: RunOwner, first_step: int, num_steps: int, num_flips: int = 1) -> None:
    for step in range(first_step, first_step + num_steps):
        (plan,) = owner.window(step, 1, 64).plans
        owner.report(losses_of(step, ids_of(plan), num_flips=num_flips))


@SNAPSHOTS
@READS
def test_a_restore_finds_the_state_as_it_began_while_another_process_rewinds(
    database_url: str, corpus: Corpus, snapshot_every: int, number: int
) -> None:
    with run_of_two_processes(database_url, corpus, snapshot_every) as place:
        before = place.latest()
        with before_query(place.engine, number, place.rewind):
            found = place.latest()
        assert found == before != place.latest()


@READS
def test_the_state_after_a_step_is_found_while_another_process_rewinds(
    database_url: str, corpus: Corpus, number: int
) -> None:
    with run_of_two_processes(database_url, corpus, 1000) as place:
        before = place.after_step()
        with before_query(place.engine, number, place.rewind):
            found = place.after_step()
        assert found == before != place.after_step()


@READS
def test_a_restore_finds_the_state_as_it_began_while_another_process_plans(
    database_url: str, corpus: Corpus, number: int
) -> None:
    with run_of_two_processes(database_url, corpus, 5) as place:
        before = place.latest()
        with before_query(place.engine, number, lambda: train(place.other, 6, 3)):
            found = place.latest()
        assert found == before != place.latest()
