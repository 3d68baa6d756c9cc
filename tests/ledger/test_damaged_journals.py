from pathlib import Path

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from replay_service.corpus.reading.reader import Corpus
from replay_service.errors import JournalDamaged
from replay_service.ledger import restoring
from replay_service.ledger.damaged_journals import DamagedJournals
from replay_service.ledger.owners import Owners
from replay_service.ledger.readers import RunReaders
from tests.ledger.worlds import open_journal, owner_of, record_of


def test_a_damaged_journal_is_logged_once_until_a_fold_succeeds() -> None:
    damaged = DamagedJournals()
    with capture_logs() as logs:
        for _ in range(3):
            damaged.note("tuning", (1, "now"), ValueError("no event"))
        assert len(logs) == 1
        damaged.forget("tuning")
        damaged.note("tuning", (1, "now"), ValueError("no event"))
    assert len(logs) == 2


def test_what_is_wrong_with_a_journal_is_said_of_that_run_and_no_other_of_its_name() -> None:
    damaged = DamagedJournals()
    assert damaged.problem("tuning", (1, "now")) is None
    raised = damaged.note("tuning", (1, "now"), ValueError("no event"))
    assert damaged.problem("tuning", (1, "now")) == raised.detail
    assert damaged.problem("tuning", (2, "later")) is None
    damaged.forget("tuning")
    assert damaged.problem("tuning", (1, "now")) is None


def test_an_owner_that_could_fold_a_journal_takes_back_that_it_is_damaged(tmp_path: Path, corpus: Corpus) -> None:
    with open_journal(tmp_path / "ledger.db") as journal:
        journal.create_run(record_of())
        incarnation = journal.point("tuning").incarnation
        journal.damaged.note("tuning", incarnation, ValueError("a moment ago"))
        owner_of(journal, corpus)
        assert journal.damaged.problem("tuning", incarnation) is None


def test_of_a_journal_that_does_not_fold_an_owner_and_a_reader_say_what_is_wrong(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_journal(tmp_path / "ledger.db") as journal:
        journal.create_run(record_of())
        owner_of(journal, corpus).window(0, 2, 8)
        with journal.engine.begin() as connection:
            connection.execute(text("UPDATE events SET step = 5 WHERE kind = 'planned' AND step = 1"))
        incarnation = journal.point("tuning").incarnation
        readers = RunReaders(journal, Owners(journal, lambda _: corpus))
        for look in (lambda: owner_of(journal, corpus), lambda: readers.read("tuning", lambda view: view)):
            with pytest.raises(JournalDamaged, match="AssertionError: no plans of the steps from 0 on") as refused:
                look()
            assert journal.damaged.problem("tuning", incarnation) == refused.value.detail
            journal.damaged.forget("tuning")
            with monkeypatch.context() as patch:
                patch.setattr(restoring, "latest", broken)
                with pytest.raises(RuntimeError, match="not of the journal"):
                    look()
            assert journal.damaged.problem("tuning", incarnation) is None


def test_a_run_that_is_created_again_while_it_is_read_is_not_called_damaged(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_journal(tmp_path / "ledger.db") as journal:
        journal.create_run(record_of(seed=1))
        owner = owner_of(journal, corpus)
        owner.close()

        def meanwhile(*_: object) -> None:
            monkeypatch.undo()
            owner.delete()
            journal.create_run(record_of(seed=2))
            raise ValueError("rows of two runs")

        monkeypatch.setattr(restoring, "latest", meanwhile)
        view = RunReaders(journal, Owners(journal, lambda _: corpus)).read("tuning", lambda view: view)
        assert view.record.config.seed == 2
        assert journal.damaged.problem("tuning", journal.point("tuning").incarnation) is None


def broken(*_: object) -> None:
    raise RuntimeError("a fault that is not of the journal")
