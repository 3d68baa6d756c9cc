from pathlib import Path

import pytest

from tests.kill.kill import survive


def test_a_service_that_is_killed_a_few_times_keeps_its_promises(tmp_path: Path) -> None:
    outcome = survive(tmp_path, f"sqlite:///{tmp_path / 'journal.sqlite'}", num_kills=8, num_clients=4, seed=1)
    assert outcome.restarts == 8
    assert outcome.rows_acknowledged > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_200_kills_on_sqlite(tmp_path: Path) -> None:
    outcome = survive(tmp_path, f"sqlite:///{tmp_path / 'journal.sqlite'}", num_kills=200, num_clients=4, seed=0)
    assert outcome.epochs > 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_200_kills_on_postgresql(tmp_path: Path, postgresql_database: str) -> None:
    outcome = survive(tmp_path, postgresql_database, num_kills=200, num_clients=4, seed=0)
    assert outcome.epochs > 1
