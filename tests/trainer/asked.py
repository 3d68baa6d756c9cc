"""Jobs whose requests for batches are counted: `python -m tests.benchmarks.asking` and the tests share them."""

from typing import Any

import httpx2
import numpy as np

from replay_service.testing import ServiceUnderTest
from replay_service.wire.batches import Batch
from replay_service.wire.losses import LOSS_ROW
from replay_trainer.client import ReplayClient
from replay_trainer.rehearsal import RehearsalStream
from replay_trainer.reporting import LossReporter
from replay_trainer.windows import Auto


class Counting(httpx2.BaseTransport):
    """Sends requests on to a service, and counts those for batches."""

    def __init__(self, service: ServiceUnderTest) -> None:
        self._onward = service.client().transport
        self.statuses: list[int] = []
        """Of the answers to requests for batches."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        assert self._onward is not None
        answer = self._onward.handle_request(request)
        if request.url.path.endswith("/batches"):
            self.statuses.append(answer.status_code)
        return answer

    @property
    def num_batches(self) -> int:
        return len(self.statuses)

    @property
    def num_refused(self) -> int:
        return self.statuses.count(422)


def take_steps(
    streams: list[RehearsalStream], reporter: LossReporter, num_steps: int, loss_nats: float = 3.0
) -> list[list[Batch]]:
    """What each rank rehearses in each of the next steps; the ranks go step by step together, and report all of it."""
    taken = []
    for _ in range(num_steps):
        batches = [next(stream) for stream in streams]
        for batch in batches:
            reporter.send(losses_of(batch, loss_nats))
        reporter.flush()
        taken.append(batches)
    return taken


def losses_of(batch: Batch, loss_nats: float) -> np.ndarray:
    """A report on the samples of a step, of which those with an even id are damaged: LOSS_ROW [n]."""
    rows = np.zeros(len(batch), dtype=LOSS_ROW)
    rows["step"], rows["sample_id"] = batch.only_step.step, batch.sample_id
    rows["rank"], rows["attempt"] = batch.header.rank, batch.header.attempt
    rows["loss_nats"], rows["num_tokens"], rows["num_flips"] = loss_nats, 10, 5 * (batch.sample_id % 2 == 0)
    return rows


def whole_job(
    client: ReplayClient,
    run: str,
    world_size: int,
    num_steps: int,
    window_steps: int | Auto = "auto",
    **settings: Any,
) -> list[list[Batch]]:
    """What each rank of a new run rehearses in each step of the job."""
    client.ensure_run(run, "pretraining", settings)
    reporter = LossReporter(client, run)
    streams = [RehearsalStream(client, run, rank, world_size, num_steps, window_steps) for rank in range(world_size)]
    try:
        return take_steps(streams, reporter, num_steps)
    finally:
        for each in (*streams, reporter):
            each.close()
