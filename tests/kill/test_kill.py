from pathlib import Path

import pytest

from replay_service.sampling.run_config import FeedbackMode
from tests.kill.kill import survive


@pytest.mark.parametrize("mode", ["latest", "fenced"])
def test_a_service_that_is_killed_a_few_times_keeps_its_promises(tmp_path: Path, mode: FeedbackMode) -> None:
    url = f"sqlite:///{tmp_path / 'journal.sqlite'}"
    outcome = survive(tmp_path, url, num_kills=4, num_clients=4, seed=1, mode=mode)
    assert outcome.restarts == 4
    assert outcome.rows_acknowledged > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("mode", "num_kills"), [("latest", 200), ("fenced", 100)])
def test_many_kills_on_sqlite(tmp_path: Path, mode: FeedbackMode, num_kills: int) -> None:
    url = f"sqlite:///{tmp_path / 'journal.sqlite'}"
    assert survive(tmp_path, url, num_kills=num_kills, num_clients=4, seed=0, mode=mode).epochs > 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("mode", "num_kills"), [("latest", 200), ("fenced", 100)])
def test_many_kills_on_postgresql(tmp_path: Path, postgresql_database: str, mode: FeedbackMode, num_kills: int) -> None:
    outcome = survive(tmp_path, postgresql_database, num_kills=num_kills, num_clients=4, seed=0, mode=mode)
    assert outcome.epochs > 1
