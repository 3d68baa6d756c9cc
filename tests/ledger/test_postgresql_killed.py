"""The database server is killed and comes back, while a service that nobody restarts is under load."""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import httpx2
import pytest

from replay_service.wire.batches import decode_batch
from tests.databases import PostgresqlServer, find_postgresql, fresh_database, postgresql_server
from tests.gateway.worlds import ask, assert_problem, create_run, losses_of, report
from tests.ledger.told import Told
from tests.support import make_corpus, running_service

NUM_RANKS: Final = 4
NUM_KILLS: Final = 3
ANSWERS_BETWEEN_KILLS: Final = 20


@pytest.fixture
def database_server() -> Iterator[PostgresqlServer]:
    """A PostgreSQL server for this test alone."""
    if find_postgresql() is None:
        pytest.skip("PostgreSQL is not installed: no initdb and postgres in PATH or in /usr/lib/postgresql/*/bin")
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder, postgresql_server(Path(folder)) as server:
        yield server


@dataclass(slots=True)
class Load:
    """What the ranks do, seen from outside: answers and refusals can be waited for."""

    answers: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    refusals: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    over: threading.Event = field(default_factory=threading.Event)

    def await_answers(self) -> None:
        _await_more(self.answers, ANSWERS_BETWEEN_KILLS)

    def await_refusals(self) -> None:
        _await_more(self.refusals, NUM_RANKS)


def _await_more(counted: threading.Semaphore, num: int) -> None:
    """Wait until something has happened `num` times from now on."""
    while counted.acquire(blocking=False):
        pass
    for _ in range(num):
        assert counted.acquire(timeout=60), "nothing happens any more"


@dataclass(slots=True)
class Rank:
    """Asks for steps and reports its share of them; sends again what was refused, and takes no other refusal."""

    rank: int
    client: httpx2.Client
    told: Told
    load: Load

    def train(self) -> None:
        step = 0
        while not self.load.over.is_set():
            answer = self._answer(partial(ask, step=step, num_steps=1 + (step + self.rank) % 4))
            rows = losses_of(self.told.served(decode_batch(answer.content)))[self.rank :: NUM_RANKS]
            assert self._answer(partial(report, rows=rows)).json()["rejected"] == 0
            self.told.reported(rows)
            step += 1

    def _answer(self, request: Callable[[httpx2.Client], httpx2.Response]) -> httpx2.Response:
        while (response := request(self.client)).status_code != 200:
            assert_problem(response, 503, "journal-unavailable")
            assert response.headers["retry-after"] == "1"
            assert not self.load.over.is_set(), "refused to the last"
            self.load.refusals.release()
            time.sleep(0.02)
        self.load.answers.release()
        return response


def await_not_ready(client: httpx2.Client) -> None:
    """What readiness says may be a second old."""
    for _ in range(100):
        answer = client.get("/readyz")
        if answer.status_code != 200:
            assert_problem(answer, 503, "not-ready")
            return
        time.sleep(0.05)
    raise AssertionError("the service says that it is ready without its database")


def kill_often(database_server: PostgresqlServer, load: Load, client: httpx2.Client) -> None:
    for _ in range(NUM_KILLS):
        load.await_answers()
        database_server.kill()
        load.await_refusals()
        await_not_ready(client)
        assert client.get("/healthz").status_code == 200
        database_server.start()
    load.await_answers()


def test_a_service_goes_on_when_its_database_server_was_killed_and_nothing_acknowledged_is_missing(
    tmp_path: Path, database_server: PostgresqlServer
) -> None:
    make_corpus(tmp_path / "corpora")
    told, load = Told(), Load()
    with (
        fresh_database(database_server.url, "killed") as url,
        running_service(tmp_path, database_url=url) as (base_url, process),
        httpx2.Client(base_url=base_url, timeout=30.0) as client,
        ThreadPoolExecutor(NUM_RANKS) as threads,
    ):
        create_run(client, report_window_steps=1 << 20)
        training: list[Future[None]] = [
            threads.submit(Rank(rank, client, told, load).train) for rank in range(NUM_RANKS)
        ]
        try:
            kill_often(database_server, load, client)
        finally:
            load.over.set()
        for each in training:
            each.result()
        assert process.poll() is None
        told.assert_stands(tmp_path, url)
