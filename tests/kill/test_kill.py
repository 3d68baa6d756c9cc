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


def test_a_service_of_several_gateways_that_is_killed_a_few_times_keeps_its_promises(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'journal.sqlite'}"
    outcome = survive(tmp_path, url, num_kills=4, num_clients=4, seed=1, num_gateways=2)
    assert outcome.restarts == 3
    assert outcome.rows_acknowledged > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", ["latest", "fenced"])
def test_many_kills_of_several_gateways(tmp_path: Path, postgresql_database: str, mode: FeedbackMode) -> None:
    outcome = survive(tmp_path, postgresql_database, num_kills=100, num_clients=4, seed=0, mode=mode, num_gateways=2)
    assert outcome.rows_acknowledged > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("num_gateways", [1, 2])
def test_many_kills_of_two_services_on_one_journal(tmp_path: Path, postgresql_database: str, num_gateways: int) -> None:
    outcome = survive(
        tmp_path,
        postgresql_database,
        num_kills=60,
        num_clients=4,
        seed=0,
        num_gateways=num_gateways,
        num_services=2,
    )
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
