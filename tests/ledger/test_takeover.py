"""Two processes serve one journal: the one that opened a run last owns it; the other one says so, and takes it back."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx2
import numpy as np
import pytest

from replay_service.wire.batches import decode_batch
from tests.gateway.worlds import all_of, ask, assert_problem, batch_of, create_run, losses_of, report
from tests.ledger.told import Told
from tests.support import make_corpus, running_service

NUM_RANKS: Final = 4
NUM_TURNS: Final = 24
TAKEN_IN_TURN: Final = 8


@dataclass(frozen=True, slots=True)
class Place:
    """Corpora and a database that any number of processes serve."""

    root: Path
    database_url: str

    @contextmanager
    def process(self) -> Iterator[httpx2.Client]:
        """A client of a new process, which stops when the context ends."""
        with (
            running_service(self.root, database_url=self.database_url) as (base_url, _),
            httpx2.Client(base_url=base_url, timeout=30.0) as client,
        ):
            yield client


@pytest.fixture
def place(tmp_path: Path, postgresql_database: str) -> Place:
    make_corpus(tmp_path / "corpora")
    return Place(tmp_path, postgresql_database)


def assert_taken(response: httpx2.Response) -> None:
    assert "taken over" in assert_problem(response, 503, "run-taken")["detail"]
    assert response.headers["retry-after"] == "1"


def reported(told: Told, client: httpx2.Client, rows: np.ndarray) -> None:
    assert report(client, rows).json()["rejected"] == 0
    told.reported(rows)


def what_stands(client: httpx2.Client) -> list[Any]:
    """What a process says of the run, but for its advice: it tells that another one has taken the run."""
    found = all_of(client)
    found[1].pop("advice")
    return found


def test_a_process_whose_run_was_taken_says_so_once_and_takes_it_back(place: Place) -> None:
    told = Told()
    with place.process() as second:
        with place.process() as first:
            create_run(first)
            batch = told.served(batch_of(first, 0, 6))
            reported(told, first, losses_of(batch)[::2])
            reported(told, second, losses_of(told.served(batch_of(second, 0, 12))))
            before = what_stands(second)
            assert_taken(report(first, losses_of(batch)))
            assert what_stands(first) == before
            assert what_stands(second) == before
        with place.process() as again:
            assert what_stands(again) == before
            reported(told, again, losses_of(told.served(batch_of(again, 0, 15))))
            assert_taken(ask(second, step=12, num_steps=3))
            told.served(batch_of(again, 0, 15))
    told.assert_stands(place.root, place.database_url)


@dataclass(slots=True)
class Rank:
    """Asks one process until that one says that the run was taken, then the other one."""

    rank: int
    clients: list[httpx2.Client]
    told: Told
    under_way: threading.Event

    def train(self) -> None:
        for step in range(NUM_TURNS):
            if step == TAKEN_IN_TURN:
                self.under_way.set()
            answer = self.answer(partial(ask, step=step, num_steps=1 + (step + self.rank) % 4))
            rows = losses_of(self.told.served(decode_batch(answer.content)))[self.rank :: NUM_RANKS]
            assert self.answer(partial(report, rows=rows)).json()["rejected"] == 0
            self.told.reported(rows)

    def answer(self, request: Callable[[httpx2.Client], httpx2.Response]) -> httpx2.Response:
        for _ in range(200):
            response = request(self.clients[0])
            if response.status_code == 200:
                return response
            assert_taken(response)
            self.clients.reverse()
        raise AssertionError("the processes took the run from each other without end")


def test_a_run_that_is_taken_while_ranks_use_it_loses_nothing(place: Place) -> None:
    told, under_way = Told(), threading.Event()
    with place.process() as first, place.process() as second, ThreadPoolExecutor(NUM_RANKS) as threads:
        create_run(first)
        ranks = [Rank(rank, [first, second], told, under_way) for rank in range(NUM_RANKS)]
        training = [threads.submit(rank.train) for rank in ranks]
        assert under_way.wait(timeout=60)
        another = Rank(0, [second, first], told, under_way)
        told.served(decode_batch(another.answer(partial(ask, step=0, num_steps=4)).content))
        for each in training:
            each.result()
    assert len(told.plans) >= NUM_TURNS
    told.assert_stands(place.root, place.database_url)


def test_a_process_whose_run_was_taken_and_rewound_acknowledges_no_report(place: Place) -> None:
    with place.process() as first, place.process() as second:
        create_run(first)
        rows = losses_of(batch_of(first, 0, 6))
        report(first, rows)
        second.post("/v1/runs/tune/rewind", json={"step": -1}).raise_for_status()
        batch_of(second, 0, 6)
        assert_taken(report(first, rows))
