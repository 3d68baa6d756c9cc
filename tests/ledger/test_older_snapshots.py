"""Snapshots that another release wrote: the journal is folded from its first event instead."""

import struct

import numpy as np
import pytest
from sqlalchemy import create_engine, text

from replay_service.corpus.reading.reader import Corpus
from replay_service.ledger import audit
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import RunOwner
from replay_service.sampling.state_bytes import STATE_VERSION, to_bytes
from tests.ledger.test_audit import a_long_run
from tests.ledger.worlds import ids_of, losses_of, read_state, record_of


def rewrite_snapshots(database_url: str, state_of: dict[int, bytes]) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        for seq, state in state_of.items():
            connection.execute(text("UPDATE snapshots SET state = :s WHERE seq = :n"), {"s": state, "n": seq})
    engine.dispose()


def of_version(version: int, state: bytes) -> bytes:
    changed = bytearray(state)
    struct.pack_into("<I", changed, 8, version)
    return bytes(changed)


def with_attempt(rows: np.ndarray, attempt: int) -> np.ndarray:
    rows["attempt"] = attempt
    return rows


def image(owner: RunOwner) -> bytes:
    return read_state(owner, to_bytes)


@pytest.fixture
def journal(journal_of_a_run: Journal) -> Journal:
    return journal_of_a_run


@pytest.fixture
def left(journal: Journal, corpus: Corpus, database_url: str) -> tuple[RunOwner, bytes]:
    """A run whose snapshots are of another release, under a new owner; and the state that it had before."""
    before = image(a_long_run(journal, corpus))
    snapshots = {each.seq: of_version(STATE_VERSION - 1, each.state) for each in journal.snapshots("tuning")}
    assert len(snapshots) > 3
    rewrite_snapshots(database_url, snapshots)
    return RunOwner(journal, "tuning", lambda _: corpus), before


def test_a_run_is_restored_from_its_first_event(left: tuple[RunOwner, bytes]) -> None:
    owner, before = left
    assert image(owner) == before
    assert owner.attempt == 2


def test_it_goes_on_and_is_rewound(left: tuple[RunOwner, bytes], journal: Journal, corpus: Corpus) -> None:
    owner, _ = left
    owner.rewind(12)
    after_12 = image(owner)
    (plan,) = owner.window(13, 1, 100).plans
    assert owner.report(with_attempt(losses_of(13, ids_of(plan)), 3)).accepted == len(plan.rows)
    owner.rewind(12)
    assert image(owner) == after_12
    owner.rewind(4)
    assert read_state(owner, lambda state: state.next_step) == 5
    after_4 = image(owner)
    again = RunOwner(journal, "tuning", lambda _: corpus)
    assert image(again) == after_4
    assert again.attempt == 5


def test_what_cannot_be_compared_is_left_out_of_the_audit(
    left: tuple[RunOwner, bytes],
    journal: Journal,
) -> None:
    verdict = audit.verify(journal, record_of())
    assert verdict.holds
    assert verdict.num_snapshots == 0


def test_a_snapshot_that_is_no_state_does_not_verify(journal: Journal, corpus: Corpus, database_url: str) -> None:
    a_long_run(journal, corpus)
    seq = journal.snapshots("tuning")[2].seq
    rewrite_snapshots(database_url, {seq: b"no state"})
    assert audit.verify(journal, record_of()).wrong_snapshots == [seq]
