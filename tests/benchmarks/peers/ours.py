"""This service as an operator starts it, and its parts in process, in the turns of `tests.benchmarks.peers`."""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np

from replay_service.corpus.reading.reader import Corpus
from replay_service.gateway.wire.arrow import Batch
from replay_service.ledger.owner import RunOwner
from replay_service.sampling.events import LOSS_ROW, Planned
from tests.benchmarks.ledger import record_on
from tests.benchmarks.peers.turns import ROWS, SEQ_LEN, VOCAB_SIZE, Way, answers, cpu_seconds_of, serve_turns
from tests.ledger.worlds import open_journal, owner_of
from tests.support import make_corpus, running_service
from trainer.client import ReplayClient

WINDOW_STEPS: Final = 8
_SETTINGS: Final = {"injection_ratio": "1", "policy": "mix_cd"}


@dataclass(slots=True)
class Rank:
    """A client that is one rank of a job: it takes its rows of new steps in order, and reports each step."""

    client: ReplayClient
    run: str
    rank: int
    world_size: int
    window_steps: int
    _next_step: int = 0
    _window: Batch | None = None

    def take(self) -> int:
        self._window = self.client.batch(
            self.run, self._next_step, num_steps=self.window_steps, rank=self.rank, world_size=self.world_size
        )
        self._next_step += self.window_steps
        return len(self._window)

    def report(self) -> None:
        assert self._window is not None
        for header in self._window.header.steps:
            batch = self._window.of_step(header.step)
            losses = losses_of(header.step, batch.sample_id, batch.stratum, self.rank)
            result = self.client.report(self.run, losses)
            assert not result.rejected, result

    def close(self) -> None:
        self.client.close()


def losses_of(step: int, sample_ids: np.ndarray, strata: np.ndarray, rank: int = 0) -> np.ndarray:
    """A report of a batch: the higher the stratum, the more flips."""
    rows = np.zeros(len(sample_ids), dtype=LOSS_ROW)
    rows["step"], rows["sample_id"], rows["rank"] = step, sample_ids, rank
    rows["loss_nats"], rows["num_tokens"], rows["num_flips"] = 2.5, SEQ_LEN - 1, 100 * strata
    return rows


def ranks_of_new_run(url: str, window_steps: int, num_clients: int) -> list[Rank]:
    """The ranks of a job whose every step rehearses 64 rows for each of them."""
    clients = [ReplayClient(url) for _ in range(num_clients)]
    run = f"run-{time.time_ns()}"
    clients[0].ensure_run(run, "wiki", {"global_batch_size": ROWS * num_clients, **_SETTINGS})
    return [Rank(each, run, rank, num_clients, window_steps) for rank, each in enumerate(clients)]


@dataclass(slots=True)
class InProcess:
    """A run's owner and a corpus without a service: plan, read rows, make losses durable."""

    owner: RunOwner
    corpus: Corpus
    _next_step: int = 0
    _plan: Planned | None = field(default=None)

    def take(self) -> int:
        (self._plan,) = self.owner.plan(self._next_step, 1, 1 << 20)
        self._next_step += 1
        return len(self.corpus.rows(self._plan.rows["sample_id"]).input_ids)

    def report(self) -> None:
        assert self._plan is not None
        rows = self._plan.rows
        outcome = self.owner.report(losses_of(self._plan.step, rows["sample_id"], rows["stratum"]))
        assert not outcome.rejected, outcome

    def close(self) -> None:
        pass


@contextmanager
def owned_run(root: Path) -> Iterator[InProcess]:
    corpus = Corpus(root / "corpora" / "wiki")
    with open_journal(root / "in-process") as journal:
        journal.create_run(record_on(corpus, global_batch_size=ROWS, **_SETTINGS))
        yield InProcess(owner_of(journal, corpus), corpus)


def main() -> None:
    num_rows = int(sys.argv[1])
    with answers() as told, tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_corpus(
            root / "corpora",
            rows_per_domain=num_rows // 2,
            rows_per_segment=8192,
            seq_len=SEQ_LEN,
            vocab_size=VOCAB_SIZE,
        )
        with running_service(root, options=["--log-level", "warning"]) as (url, process), owned_run(root) as run:
            cpu_seconds = partial(cpu_seconds_of, process.pid)
            ways = {
                "one step a request": Way(partial(ranks_of_new_run, url, 1), cpu_seconds),
                "8 steps a request": Way(partial(ranks_of_new_run, url, WINDOW_STEPS), cpu_seconds),
                "in process": Way(lambda _: [run], time.process_time),
            }
            serve_turns(ways, [f"replay-service {version('replay-service')}"], told)


if __name__ == "__main__":
    main()
