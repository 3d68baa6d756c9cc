"""Kill a serving process again and again while the ranks of a job use it, then hold it to every promise.

python -m tests.kill.kill --kills 200 --database postgresql --clients 4 --seed 0
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2
import numpy as np
import pyarrow.parquet as pq
import stamina.instrumentation

from replay_service.corpus.manifest import Manifest
from replay_service.gateway.wire import Batch
from replay_service.sampling.events import LOSS_ROW
from replay_service.sampling.injection import exact_ratio, num_rehearsed, rank_positions, rehearsed_before
from tests.databases import find_postgresql, fresh_database, postgresql_server
from tests.support import free_port, make_corpus
from trainer.client import ReplayClient, RetryPolicy

RUN: Final = "killed"
RATIO: Final = "0.3"
GLOBAL_BATCH_SIZE: Final = 32
SETTINGS: Final[dict[str, Any]] = {
    "global_batch_size": GLOBAL_BATCH_SIZE,
    "injection_ratio": RATIO,
    "seed": 3,
    "report_window_steps": 512,
}
PATIENT: Final = RetryPolicy(give_up_after_s=60.0, first_wait_s=0.02, longest_wait_s=0.2)

_MOST_STEPS_A_WINDOW: Final = 8
_SHARE_SENT_TWICE: Final = 0.1
_SHARE_LATE: Final = 0.1
_SHARE_ASKED_AGAIN: Final = 0.1
_SHARE_KILLED_AT_START: Final = 0.125


@dataclass(slots=True)
class Service:
    """The serving process on one port, as often as it is started."""

    folder: Path
    database_url: str
    port: int = field(default_factory=free_port)
    num_starts: int = 0
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def options(self) -> list[str]:
        """Which journal, for every command of `replay-service`."""
        return ["--root", str(self.folder), "--database-url", self.database_url]

    def start(self) -> None:
        command = [sys.executable, "-m", "replay_service", "serve", *self.options, "--port", str(self.port)]
        with (self.folder / "serve.log").open("ab") as log:
            self._process = subprocess.Popen([*command, "--log-level", "warning"], stderr=log)
        self.num_starts += 1

    def await_ready(self) -> None:
        assert self._process is not None
        for _ in range(600):
            assert self._process.poll() is None, f"the service stopped; see {self.folder / 'serve.log'}"
            try:
                if httpx2.get(f"{self.base_url}/readyz").status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError("the service did not become ready")

    def end(self, signal_number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(signal_number)
        return self._process.wait(timeout=60)


@contextmanager
def serving(folder: Path, database_url: str) -> Iterator[Service]:
    service = Service(folder, database_url)
    service.start()
    try:
        service.await_ready()
        yield service
    finally:
        service.end(signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Given:
    """What one rank was given for one step."""

    step: int
    sample_ids: tuple[int, ...]
    num_rehearsed: int
    rehearsed_before: int


@dataclass(slots=True)
class Rank:
    """A rank of the job: it pulls windows of steps, reports losses in disorder, and remembers what it was told."""

    rank: int
    world_size: int
    client: ReplayClient
    rng: np.random.Generator
    given: list[Given] = field(default_factory=list)
    acknowledged: set[tuple[int, int]] = field(default_factory=set)
    num_batches: int = 0
    num_reports: int = 0
    num_rejected: int = 0
    next_step: int = 0
    _to_report: list[np.ndarray] = field(default_factory=list)
    _late: list[np.ndarray] = field(default_factory=list)

    def play(self, stopped: threading.Event) -> None:
        """Train until `stopped`, then report what is left."""
        while not stopped.is_set():
            self._pull()
            self._report_some()
        for rows in [*self._to_report, *self._late]:
            self._report(rows)

    def _pull(self) -> None:
        first, num_steps = self.next_step, int(self.rng.integers(1, _MOST_STEPS_A_WINDOW + 1))
        if self.rng.random() < _SHARE_ASKED_AGAIN:
            first = int(self.rng.integers(0, self.next_step + 1))
        batch = self.client.batch(RUN, first, num_steps=num_steps, rank=self.rank, world_size=self.world_size)
        self.num_batches += 1
        given = list(steps_of(batch))
        assert [each.step for each in given] == list(range(first, first + num_steps))
        self.given += given
        self._to_report += [self._losses(each) for each in given if each.step >= self.next_step]
        self.next_step = max(self.next_step, first + num_steps)

    def _losses(self, given: Given) -> np.ndarray:
        """What lies in the first segments is forgotten most, so that the policy has something to prefer."""
        rows = np.zeros(len(given.sample_ids), dtype=LOSS_ROW)
        rows["step"], rows["rank"], rows["sample_id"] = given.step, self.rank, given.sample_ids
        rows["loss_nats"], rows["num_tokens"] = self.rng.gamma(4.0, 1.0, len(rows)), 11
        rows["num_flips"] = np.where(rows["sample_id"] >> 32 < 4, 8, 1)
        return rows

    def _report_some(self) -> None:
        self.rng.shuffle(self._to_report)  # type: ignore[arg-type]
        for _ in range(int(self.rng.integers(0, len(self._to_report) + 1))):
            rows = self._to_report.pop()
            if self.rng.random() < _SHARE_LATE:
                self._late.append(rows)
                continue
            self._report(rows)
            if self.rng.random() < _SHARE_SENT_TWICE:
                self._late.append(rows)
        if len(self._late) > 40:
            self._report(self._late.pop(int(self.rng.integers(len(self._late)))))

    def _report(self, rows: np.ndarray) -> None:
        result = self.client.report(RUN, rows)
        self.num_reports += 1
        self.num_rejected += result.rejected
        assert result.accepted + result.duplicate + result.rejected == len(rows)
        if not result.rejected:
            self.acknowledged.update(zip(rows["step"].tolist(), rows["sample_id"].tolist(), strict=True))


def steps_of(batch: Batch) -> Iterator[Given]:
    for header in batch.header.steps:
        ids = tuple(batch.of_step(header.step).sample_id.tolist())
        yield Given(header.step, ids, header.num_rehearsed, header.rehearsed_before)


def kill_often(service: Service, num_kills: int, rng: np.random.Generator, ranks: list[Future[None]]) -> None:
    """Kill the service at random instants, some before it is ready; leaves it running."""
    for _ in range(num_kills):
        if rng.random() < _SHARE_KILLED_AT_START:
            time.sleep(rng.uniform(0.0, 1.5))
        else:
            service.await_ready()
            time.sleep(rng.uniform(0.0, 1.0))
        assert not any(each.done() for each in ranks), "a rank gave up"
        service.end(signal.SIGKILL)
        time.sleep(rng.uniform(0.0, 0.1))
        service.start()
    service.await_ready()


@dataclass(frozen=True, slots=True)
class Journal:
    """The exported journal: what was planned and reported, one array element a row, in the journal's order."""

    planned: dict[str, np.ndarray]
    reported: dict[str, np.ndarray]


def exported(service: Service) -> Journal:
    path = service.folder / "journal.parquet"
    replay_service("journal", "export", RUN, "--parquet", str(path), *service.options)
    table = pq.read_table(path)
    kind = np.array(table["kind"].to_pylist())
    columns = {
        name: table[name].to_numpy(zero_copy_only=False) for name in ("step", "sample_id", "stratum", "times_drawn")
    }

    def rows(wanted: str) -> dict[str, np.ndarray]:
        chosen = (kind == wanted) & ~np.isnan(columns["sample_id"].astype(float))
        return {name: column[chosen] for name, column in columns.items()}

    return Journal(rows("planned"), rows("reported"))


def replay_service(*arguments: str) -> None:
    command = [sys.executable, "-m", "replay_service", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"replay-service {' '.join(arguments[:3])} failed: {done.stderr}"


def check_plans(plans: dict[int, tuple[int, ...]], ranks: list[Rank], served: list[Given]) -> None:
    """Whoever asked for a step, whenever, got the plan that stands in the journal, or a rank's slice of it."""
    for rank in ranks:
        for each in rank.given:
            positions = rank_positions(each.num_rehearsed, each.step, rank.rank, rank.world_size)
            slice_ = tuple(plans[each.step][i] for i in positions)
            assert each.sample_ids == slice_, f"rank {rank.rank} got another plan of step {each.step}"
    for each in served:
        assert each.sample_ids == plans.get(each.step, ()), f"the plan of step {each.step} changed"


def check_ratio(given: list[Given]) -> None:
    """Of every prefix of steps, exactly floor(p * B * steps) sequences are rehearsal."""
    ratio = exact_ratio(RATIO)
    for each in given:
        assert each.rehearsed_before == rehearsed_before(each.step, ratio, GLOBAL_BATCH_SIZE)
        assert each.num_rehearsed == num_rehearsed(each.step, ratio, GLOBAL_BATCH_SIZE)


def check_epochs(planned: dict[str, np.ndarray], sizes: np.ndarray) -> int:
    """In each epoch of a stratum every sample stands once, and no epoch begins before the last has ended.

    Returns the most epochs that a stratum went through.
    """
    for stratum, size in enumerate(sizes):
        mine = planned["stratum"] == stratum
        # A plan is shuffled, so where an epoch ends within a step its order does not tell which draw was first.
        order = np.lexsort((planned["times_drawn"][mine], planned["step"][mine]))
        ids, times_drawn = planned["sample_id"][mine][order], planned["times_drawn"][mine][order]
        np.testing.assert_array_equal(times_drawn, 1 + np.arange(len(ids)) // size)
        for first in range(0, len(ids), size):
            epoch = ids[first : first + size]
            assert len(np.unique(epoch)) == len(epoch), f"a sample repeats in an epoch of stratum {stratum}"
    return int(planned["times_drawn"].max())


def check_reports(reported: dict[str, np.ndarray], ranks: list[Rank], stats: dict[str, Any]) -> None:
    """Every acknowledged row stands in the journal, none stands twice, and the statistics count them all."""
    pairs = list(zip(reported["step"].astype(int).tolist(), reported["sample_id"].astype(int).tolist(), strict=True))
    standing = set(pairs)
    assert len(standing) == len(pairs), "a report counts twice"
    for rank in ranks:
        lost = rank.acknowledged - standing
        assert not lost, f"{len(lost)} acknowledged rows of rank {rank.rank} are missing, such as {min(lost)}"
    assert stats["num_reported"] == len(pairs)


def served_again(client: ReplayClient, num_steps: int, at_once: int = 256) -> list[Given]:
    """All plans, asked for once more as a job of one rank."""
    windows = [(first, min(at_once, num_steps - first)) for first in range(0, num_steps, at_once)]
    return [each for first, num in windows for each in steps_of(client.batch(RUN, first, num_steps=num))]


def stratum_sizes(manifest: Manifest) -> np.ndarray:
    strata = np.array([(stratum, num) for each in manifest.segments for stratum, _, num in each.extents])
    return np.bincount(strata[:, 0], weights=strata[:, 1]).astype(int)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened before everything was found to be right."""

    kills: int
    restarts: int
    steps: int
    batches: int
    reports: int
    rows_acknowledged: int
    rows_rejected: int
    epochs: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.restarts} restarts, {self.steps:,} steps, {self.batches:,} batches, "
            f"{self.reports:,} reports, {self.rows_acknowledged:,} rows acknowledged ({self.rows_rejected:,} late), "
            f"up to {self.epochs} epochs, {self.seconds:.0f} s: every promise held"
        )


def survive(folder: Path, database_url: str, *, num_kills: int, num_clients: int, seed: int) -> Outcome:
    """Play a job on a service that is killed `num_kills` times.

    Raises:
        AssertionError: names the promise that was broken.
    """
    begin = time.monotonic()
    manifest = make_corpus(folder / "corpora", domains=("de", "en", "fr"), rows_per_domain=301, num_quantiles=7)
    killing, *playing = np.random.default_rng(seed).spawn(num_clients + 1)
    with serving(folder, database_url) as service, ExitStack() as clients:
        connected = [clients.enter_context(ReplayClient(service.base_url, PATIENT)) for _ in playing]
        connected[0].ensure_run(RUN, "wiki", SETTINGS)
        ranks = [Rank(i, num_clients, connected[i], rng) for i, rng in enumerate(playing)]
        play(service, ranks, num_kills, killing)
        num_steps = connected[0].run(RUN)["next_step"]
        served, stats = served_again(connected[0], num_steps), connected[0].stats(RUN)
        replay_service("journal", "verify", RUN, *service.options)
        journal = exported(service)
    plans = plans_of(journal.planned)
    check_plans(plans, ranks, served)
    check_ratio([*served, *(each for rank in ranks for each in rank.given)])
    check_reports(journal.reported, ranks, stats)
    return Outcome(
        kills=num_kills,
        restarts=service.num_starts - 1,
        steps=num_steps,
        batches=sum(each.num_batches for each in ranks),
        reports=sum(each.num_reports for each in ranks),
        rows_acknowledged=sum(len(each.acknowledged) for each in ranks),
        rows_rejected=sum(each.num_rejected for each in ranks),
        epochs=check_epochs(journal.planned, stratum_sizes(manifest)),
        seconds=time.monotonic() - begin,
    )


def play(service: Service, ranks: list[Rank], num_kills: int, rng: np.random.Generator) -> None:
    """Let the ranks train while the service is killed; raises what any of them raised."""
    stopped = threading.Event()
    with ThreadPoolExecutor(len(ranks)) as threads:
        playing = [threads.submit(rank.play, stopped) for rank in ranks]
        try:
            kill_often(service, num_kills, rng, playing)
        finally:
            stopped.set()
            for each in playing:
                each.result()


def plans_of(planned: dict[str, np.ndarray]) -> dict[int, tuple[int, ...]]:
    """The sample ids of each step, in the order in which they stand in the journal."""
    steps, first = np.unique(planned["step"].astype(int), return_index=True)
    parts = np.split(planned["sample_id"].astype(int), first[1:])
    return {int(step): tuple(part.tolist()) for step, part in zip(steps, parts, strict=True)}


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty database: an SQLite file in `folder`, or one on a PostgreSQL server made for it."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'journal.sqlite'}"
        return
    if find_postgresql() is None:
        sys.exit("PostgreSQL is not installed: no initdb and postgres in PATH or in /usr/lib/postgresql/*/bin")
    with (
        tempfile.TemporaryDirectory(prefix="postgresql-") as cluster,
        postgresql_server(Path(cluster)) as template,
        fresh_database(template, "killed") as url,
    ):
        yield url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    stamina.instrumentation.set_on_retry_hooks([])
    with tempfile.TemporaryDirectory() as folder, database(wanted.database, Path(folder)) as url:
        outcome = survive(Path(folder), url, num_kills=wanted.kills, num_clients=wanted.clients, seed=wanted.seed)
    print(f"{wanted.database}, {wanted.clients} clients, seed {wanted.seed}: {outcome}")


if __name__ == "__main__":
    main()
