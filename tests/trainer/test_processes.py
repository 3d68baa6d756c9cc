"""What stays in the process of the training loop, and what may leave it."""

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
import torch

from replay_service.testing import replay_service
from replay_service.wire.losses import LOSS_ROW
from replay_trainer.client import ReplayClient
from replay_trainer.errors import InvalidTraining
from replay_trainer.plain import Rehearsal, RehearsalLoop

SETTINGS = {"global_batch_size": 4, "injection_ratio": "0.5", "injection_mode": "add"}

OPENED: list[RehearsalLoop] = []
"""What a fork takes along."""

USES: list[Callable[[RehearsalLoop], Any]] = [
    lambda loop: loop.mix(0, {"input_ids": torch.ones(4, 5).long(), "labels": torch.ones(4, 5).long()}),
    lambda loop: loop.reporter.send(np.zeros(1, dtype=LOSS_ROW)),
    RehearsalLoop.flush,
]


def refusal_of(use: int) -> str:
    try:
        USES[use](OPENED[-1])
    except InvalidTraining as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def client() -> Iterator[ReplayClient]:
    with replay_service(serve=True) as service, ReplayClient(service.url) as client:
        client.ensure_run("a-run", service.corpus, SETTINGS)
        yield client


def test_a_loop_is_not_used_in_a_forked_process(client: ReplayClient) -> None:
    with Rehearsal(client, "a-run").open() as loop, ProcessPoolExecutor(1, get_context("fork")) as workers:
        OPENED.append(loop)
        for use in range(len(USES)):
            assert "not in the workers of a DataLoader" in workers.submit(refusal_of, use).result()


def test_what_to_rehearse_can_be_sent_to_another_process_and_a_loop_cannot(client: ReplayClient) -> None:
    rehearsal = pickle.loads(pickle.dumps(Rehearsal(client, "a-run", rehearsal_weight=0.5)))
    assert (rehearsal.run, rehearsal.rehearsal_weight) == ("a-run", 0.5)
    with rehearsal.client, rehearsal.open() as loop:
        for each in (loop, loop.stream, loop.reporter):
            with pytest.raises(InvalidTraining, match="cannot be pickled"):
                pickle.dumps(each)
