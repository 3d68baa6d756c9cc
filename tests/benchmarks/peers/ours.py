"""This service as an operator starts it, and its parts in process, in the turns of `tests.benchmarks.peers`."""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from replay_service.corpus.reading.reader import Corpus
from replay_service.ledger.owner import RunOwner
from replay_service.sampling.events import Planned
from replay_service.wire.batches import Batch
from replay_service.wire.losses import LOSS_ROW
from replay_trainer.client import ReplayClient
from replay_trainer.rehearsal import RehearsalStream
from replay_trainer.reporting import LossReporter
from tests.benchmarks.ledger import record_on
from tests.benchmarks.peers.turns import ROWS, SEQ_LEN, VOCAB_SIZE, Way, answers, cpu_seconds_of, serve_turns
from tests.ledger.worlds import open_journal, owner_of
from tests.support import make_corpus, running_service

WINDOWS: Final = (8, 32)
"""How many steps one request asks for, as the trainer asks."""
_SETTINGS: Final = {"injection_ratio": "1", "policy": "mix_cd"}


@dataclass(slots=True)
class AskingRank:
    """A client that is one rank of a job: it takes its rows of each step, and reports them."""

    client: ReplayClient
    run: str
    rank: int
    world_size: int
    _next_step: int = 0
    _batch: Batch | None = None

    def take(self) -> int:
        self._batch = self.client.batch(self.run, self._next_step, rank=self.rank, world_size=self.world_size)
        self._next_step += 1
        return len(self._batch)

    def report(self) -> None:
        assert self._batch is not None
        result = self.client.report(self.run, losses_of_batch(self._batch))
        assert not result.rejected, result

    def close(self) -> None:
        self.client.close()


class StreamingRank:
    """A rank that takes and reports as the trainer does: windows of steps come ahead, reports go while others wait."""

    def __init__(self, num_steps: int, client: ReplayClient, run: str, rank: int, world_size: int) -> None:
        self._num_steps = num_steps
        self._client = client
        self._stream = RehearsalStream(client, run, rank, world_size, window_steps=num_steps)
        self._reporter = LossReporter(client, run)
        self._batches: list[Batch] = []

    def take(self) -> int:
        self._batches = list(islice(self._stream, self._num_steps))
        return sum(map(len, self._batches))

    def report(self) -> None:
        for each in self._batches:
            self._reporter.send(losses_of_batch(each))
        self._reporter.flush()
        assert not self._reporter.num_rejected, self._reporter

    def close(self) -> None:
        self._stream.close()
        self._reporter.close()
        self._client.close()


def losses_of_batch(batch: Batch) -> np.ndarray:
    """A report of a batch of one step."""
    return losses_of(batch.only_step.step, batch.sample_id, batch.stratum, batch.header.rank)


def losses_of(step: int, sample_ids: np.ndarray, strata: np.ndarray, rank: int = 0) -> np.ndarray:
    """A report of a batch: the higher the stratum, the more flips."""
    rows = np.zeros(len(sample_ids), dtype=LOSS_ROW)
    rows["step"], rows["sample_id"], rows["rank"] = step, sample_ids, rank
    rows["loss_nats"], rows["num_tokens"], rows["num_flips"] = 2.5, SEQ_LEN - 1, 100 * strata
    return rows


MakeRank = Callable[[ReplayClient, str, int, int], AskingRank | StreamingRank]


def ranks_of_new_run(url: str, rank: MakeRank, num_clients: int) -> list[AskingRank | StreamingRank]:
    """The ranks of a job whose every step rehearses 64 rows for each of them."""
    clients = [ReplayClient(url) for _ in range(num_clients)]
    run = f"run-{time.time_ns()}"
    clients[0].ensure_run(run, "wiki", {"global_batch_size": ROWS * num_clients, **_SETTINGS})
    return [rank(each, run, number, num_clients) for number, each in enumerate(clients)]


@dataclass(slots=True)
class InProcess:
    """A run's owner and a corpus without a service: plan, read rows, make losses durable."""

    owner: RunOwner
    corpus: Corpus
    _next_step: int = 0
    _plan: Planned | None = field(default=None)

    def take(self) -> int:
        (self._plan,) = self.owner.window(self._next_step, 1, 1 << 20).plans
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
        with serving(root, "full") as full, serving(root, "relaxed") as relaxed, owned_run(root) as run:
            ways = {
                "one step a request": way_of(full, AskingRank),
                **{f"{num} steps a request": way_of(full, partial(StreamingRank, num)) for num in WINDOWS},
                "relaxed": way_of(relaxed, partial(StreamingRank, WINDOWS[-1])),
                "in process": Way(lambda _: [run], time.process_time),
            }
            serve_turns(ways, [f"replay-service {version('replay-service')}"], told)


@contextmanager
def serving(root: Path, durability: str) -> Iterator[tuple[str, int]]:
    """A service with this setting on the corpora of `root`: its URL and the number of its process."""
    own = root / durability
    own.mkdir()
    (own / "corpora").symlink_to(root / "corpora")
    config = own / "replay.toml"
    config.write_text(f'durability = "{durability}"\nlog_level = "warning"\n')
    with running_service(own, options=["--config", config]) as (url, process):
        yield url, process.pid


def way_of(served: tuple[str, int], rank: MakeRank) -> Way:
    url, pid = served
    return Way(partial(ranks_of_new_run, url, rank), partial(cpu_seconds_of, pid))


if __name__ == "__main__":
    main()
