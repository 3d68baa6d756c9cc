"""Two services on one journal: one trains a run, and the other one only looks at it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, text

from tests.gateway.worlds import all_of, assert_problem, batch_of, client_on, create_run, losses_of, report

PARTS = ("", "/tune", "/tune/stats", "/tune/strata", "/tune/samples", "/tune/events")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, root: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{root / 'journal.sqlite'}"
    url: str = request.getfixturevalue("postgresql_database")
    return url


@pytest.fixture
def services(root: Path, database_url: str) -> Iterator[tuple[TestClient, TestClient]]:
    """The one that trains, and the one that looks."""
    with (
        client_on(root, database_url=database_url) as trainer,
        client_on(root, database_url=database_url) as reader,
    ):
        assert create_run(trainer).status_code == 201
        yield trainer, reader


def epoch_of(database_url: str) -> int:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        epoch: int = connection.execute(text("SELECT owner_epoch FROM runs WHERE run = 'tune'")).scalar_one()
    engine.dispose()
    return epoch


def look(client: TestClient) -> list[object]:
    """All that can be read of runs."""
    answers = [client.get(f"/v1/runs{part}").raise_for_status().json() for part in PARTS]
    for sample in answers[4]["samples"][:2]:
        answers.append(client.get(f"/v1/runs/tune/samples/{sample['sample_id']}").raise_for_status().json())
    return answers


def test_looking_takes_nothing_and_tells_what_the_owner_tells(
    services: tuple[TestClient, TestClient], database_url: str
) -> None:
    trainer, reader = services
    assert look(reader) == look(trainer)
    batch = batch_of(trainer, 0, 6)
    epoch = epoch_of(database_url)
    assert look(reader) == look(trainer)
    assert report(trainer, losses_of(batch)).status_code == 200
    assert look(reader) == look(trainer)
    trainer.post("/v1/runs/tune/rewind", json={"step": 2}).raise_for_status()
    batch_of(trainer, 3, 4)
    assert look(reader) == look(trainer)
    trainer.post("/v1/runs/tune/close", json={}).raise_for_status()
    assert look(reader) == look(trainer)
    assert epoch_of(database_url) == epoch
    trainer.delete("/v1/runs/tune").raise_for_status()
    assert_problem(reader.get("/v1/runs/tune/stats"), 404, "unknown-run")


def test_the_list_tells_how_far_a_run_is_now(services: tuple[TestClient, TestClient]) -> None:
    trainer, reader = services
    batch = batch_of(trainer, 0, 6)
    report(trainer, losses_of(batch))
    trainer.patch("/v1/runs/tune", json={"injection_ratio": "0.5"}).raise_for_status()
    (listed,) = reader.get("/v1/runs").json()["runs"]
    one = trainer.get("/v1/runs/tune").json()
    assert listed == {name: one[name] for name in listed}
    assert listed["config"]["injection_ratio"] == "0.5"


def test_a_reader_beside_a_training_owner_never_makes_it_lose_the_run(
    services: tuple[TestClient, TestClient], database_url: str
) -> None:
    trainer, reader = services
    batch_of(trainer, 0, 1)
    epoch, is_over = epoch_of(database_url), Event()

    def look_on() -> int:
        num_looks = 0
        while not is_over.is_set() or not num_looks:
            look(reader)
            num_looks += 1
        return num_looks

    with ThreadPoolExecutor(1) as threads:
        looking = threads.submit(look_on)
        for step in range(24):
            assert report(trainer, losses_of(batch_of(trainer, step))).status_code == 200
        is_over.set()
        assert looking.result() > 0
    assert epoch_of(database_url) == epoch
    assert all_of(reader) == all_of(trainer)


def test_a_service_that_only_created_a_run_owns_it_not(root: Path, database_url: str) -> None:
    with client_on(root, database_url=database_url) as client:
        assert create_run(client).status_code == 201
        epoch = epoch_of(database_url)
        look(client)
        assert create_run(client).status_code == 200
        assert epoch_of(database_url) == epoch
        batch_of(client, 0)
        assert epoch_of(database_url) == epoch + 1
