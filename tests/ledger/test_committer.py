from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from replay_service.errors import JournalUnavailable
from tests.ledger.worlds import open_journal, record_of


def test_whatever_a_driver_raises_the_committer_lives_on(tmp_path: Path) -> None:
    def overflow(_connection: Any) -> None:
        raise OverflowError("too large for a driver")

    with open_journal(tmp_path / "ledger.db") as journal, capture_logs() as logs:
        for run in ("broken", "sound"):
            journal.create_run(record_of(run))
        broken, sound = journal.take("broken"), journal.take("sound")
        failing = journal._committer.submit(broken, [], overflow)
        going_on = journal._committer.submit(sound, [])
        with pytest.raises(JournalUnavailable, match="OverflowError"):
            failing.wait()
        going_on.wait()
        journal._committer.submit(broken.renewed(), []).wait()
    assert {log["event"] for log in logs} == {"the journal could not be written"}


def test_a_void_lease_writes_nothing_until_it_is_renewed(tmp_path: Path) -> None:
    with open_journal(tmp_path / "ledger.db") as journal:
        journal.create_run(record_of())
        lease = journal.take("tuning")
        lease.failure = JournalUnavailable("an earlier write failed")
        with pytest.raises(JournalUnavailable, match="earlier"):
            journal._committer.submit(lease, []).wait()


def test_what_comes_after_the_end_fails(tmp_path: Path) -> None:
    with open_journal(tmp_path / "ledger.db") as journal:
        journal.create_run(record_of())
        lease = journal.take("tuning")
    with pytest.raises(JournalUnavailable, match="stopping"):
        journal._committer.submit(lease, []).wait()
