from structlog.testing import capture_logs

from replay_service.ledger.damaged_journals import DamagedJournals


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
