import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from structlog.testing import capture_logs

from replay_service.errors import JournalUnavailable
from replay_service.ledger.committer import Committer
from replay_service.ledger.journal import Journal
from tests.ledger.worlds import open_journal, record_of


def overflow(_connection: Any) -> None:
    raise OverflowError("too large for a driver")


def interrupt(_connection: Any) -> None:
    raise KeyboardInterrupt


class Gathering:
    """Writes that gather while a commit is under way, so that they go into the next one together."""

    def __init__(self, committer: Committer, pool: ThreadPoolExecutor) -> None:
        self._committer = committer
        self._pool = pool
        self._num = 0

    def add(self, *write: Any) -> "Future[None]":
        self._num += 1
        future = self._pool.submit(self._committer.commit, *write)
        while len(self._committer._combiner._waiting) < self._num:
            pass
        return future


@contextmanager
def gathering(journal: Journal) -> Iterator[Gathering]:
    begun, go_on = threading.Event(), threading.Event()

    def hold(_connection: Any) -> None:
        begun.set()
        assert go_on.wait(60)

    journal.create_run(record_of("first"))
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(journal._committer.commit, journal.take("first"), [], hold)
        assert begun.wait(60)
        try:
            yield Gathering(journal._committer, pool)
        finally:
            go_on.set()
        first.result()


def test_whatever_a_driver_raises_the_committer_lives_on(tmp_path: Path) -> None:
    with open_journal(tmp_path / "ledger.db") as journal, capture_logs() as logs:
        for run in ("broken", "sound"):
            journal.create_run(record_of(run))
        broken, sound = journal.take("broken"), journal.take("sound")
        with gathering(journal) as together:
            failing = together.add(broken, [], overflow)
            going_on = together.add(sound, [])
        with pytest.raises(JournalUnavailable, match="OverflowError"):
            failing.result()
        going_on.result()
        journal._committer.commit(broken.renewed(), [])
    assert {log["event"] for log in logs} == {"the journal could not be written"}


def test_who_waits_for_a_commit_that_is_interrupted_hears_of_it(tmp_path: Path) -> None:
    with open_journal(tmp_path / "ledger.db") as journal:
        for run in ("interrupted", "waiting"):
            journal.create_run(record_of(run))
        failing, waiting = journal.take("interrupted"), journal.take("waiting")
        with gathering(journal) as together:
            interrupted = together.add(failing, [], interrupt)
            other = together.add(waiting, [])
        with pytest.raises(KeyboardInterrupt):
            interrupted.result()
        with pytest.raises(JournalUnavailable, match="interrupted"):
            other.result()
        assert waiting.failure is not None
        journal._committer.commit(waiting.renewed(), [])


def test_a_void_lease_writes_nothing_until_it_is_renewed(tmp_path: Path) -> None:
    with open_journal(tmp_path / "ledger.db") as journal:
        journal.create_run(record_of())
        lease = journal.take("tuning")
        lease.failure = JournalUnavailable("an earlier write failed")
        with pytest.raises(JournalUnavailable, match="earlier"):
            journal._committer.commit(lease, [])


def test_what_comes_after_the_end_fails(tmp_path: Path) -> None:
    with open_journal(tmp_path / "ledger.db") as journal:
        journal.create_run(record_of())
        lease = journal.take("tuning")
    with pytest.raises(JournalUnavailable, match="stopping"):
        journal._committer.commit(lease, [])


def test_a_run_whose_row_another_session_holds_does_not_hold_up_the_others(postgresql_database: str) -> None:
    with open_journal(postgresql_database) as journal:
        for name in ("held", "free"):
            journal.create_run(record_of(name))
        held, free = journal.take("held"), journal.take("free")
        elsewhere = create_engine(postgresql_database)
        with elsewhere.begin() as other:
            other.execute(text("SELECT 1 FROM runs WHERE run = 'held' FOR UPDATE"))
            with gathering(journal) as together:
                waiting, going_on = together.add(held, []), together.add(free, [])
            going_on.result()
            with pytest.raises(JournalUnavailable, match="another session of the database holds the run"):
                waiting.result()
        elsewhere.dispose()
        journal._committer.commit(held.renewed(), [])
