from pathlib import Path

from structlog.testing import capture_logs

from replay_service.corpus.reading.reader import Corpus
from replay_service.ledger.damaged_journals import DamagedJournals
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
