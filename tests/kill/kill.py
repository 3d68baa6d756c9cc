"""Kill services again and again while the ranks of a job use them, then hold them to every promise.

python -m tests.kill.kill --kills 200 --database postgresql --clients 4 --seed 0 --mode fenced
python -m tests.kill.kill --kills 40 --gateways 2
python -m tests.kill.kill --kills 40 --services 2

A service of several gateways has its gateways and its owner killed, too. Some of the kills are SIGTERM for all of its
processes at once. Two services have one journal, and are asked in turn: each takes the run from the other.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np

from replay_service.sampling.run_config import FeedbackMode, RunConfig
from replay_trainer.client import ReplayClient, RetryPolicy
from tests.databases import find_postgresql, fresh_database, postgresql_server
from tests.kill.promises import (
    Exported,
    check_epochs,
    check_log,
    check_plans,
    check_ratio,
    check_reports,
    check_undisturbed,
    read_export,
    stratum_sizes,
    undisturbed,
)
from tests.kill.ranks import MOST_STEPS_A_WINDOW, Given, Job, Rank, steps_of
from tests.kill.serving import Blow, Service, replay_service, serving
from tests.support import make_corpus

RUN: Final = "killed"
SETTINGS: Final[dict[str, Any]] = {
    "global_batch_size": 32,
    "injection_ratio": "0.3",
    "held_back": 0.0,
    "seed": 3,
    "report_window_steps": 512,
}
LAG: Final = MOST_STEPS_A_WINDOW + 4
"""In fenced mode. A window may have as many steps; the rest is what a rank may hold back."""
PATIENT: Final = RetryPolicy(give_up_after_s=300.0, first_wait_s=0.02, longest_wait_s=0.05)

_SHARE_KILLED_AT_START: Final = 0.125


def blows_for(service: Service, rng: np.random.Generator) -> Iterator[Blow]:
    """What the service is to suffer, without end: in any order, but every kind as often as the others."""
    while True:
        blows = service.blows
        rng.shuffle(blows)
        yield from blows


def kill_often(
    services: Sequence[Service], num_kills: int, rng: np.random.Generator, ranks: list[Future[None]]
) -> None:
    """Strike the services at random instants, some before they are ready; leaves them running."""
    blows = [blows_for(each, rng) for each in services]
    for _ in range(num_kills):
        i = int(rng.integers(len(services)))
        blow = next(blows[i])
        if blow == "kill" and rng.random() < _SHARE_KILLED_AT_START:
            time.sleep(rng.uniform(0.0, 1.5))
        else:
            services[i].await_ready()
            time.sleep(rng.uniform(0.0, 1.0))
        assert not any(each.done() for each in ranks), "a rank gave up"
        services[i].suffer(blow, rng)
    for each in services:
        each.await_ready()


def served_again(client: ReplayClient, num_steps: int, at_once: int = 256) -> list[Given]:
    """All plans, asked for once more as a job of one rank."""
    windows = [(first, min(at_once, num_steps - first)) for first in range(0, num_steps, at_once)]
    return [each for first, num in windows for each in steps_of(client.batch(RUN, first, num_steps=num))]


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


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the service tells of the run when all is over, and the journal that it leaves."""

    config: RunConfig
    num_steps: int
    served: list[Given]
    stats: dict[str, Any]
    journal: Exported


def gather(service: Service, client: ReplayClient) -> Evidence:
    """Ask the service that runs; the journal is verified and exported by the commands for it."""
    run = client.run(RUN)
    path = service.folder / "journal.parquet"
    replay_service("journal", "verify", RUN, *service.options)
    replay_service("journal", "export", RUN, "--parquet", str(path), *service.options)
    return Evidence(
        RunConfig.from_dict(run["config"]),
        run["next_step"],
        served_again(client, run["next_step"]),
        client.stats(RUN),
        read_export(path),
    )


def check(evidence: Evidence, ranks: list[Rank], folder: Path, seed: int) -> None:
    """Every promise but that of the epochs; in fenced mode one more, that nothing of the kills shows in the plans."""
    check_log(folder / "serve.log")
    planned, config = evidence.journal.planned, evidence.config
    check_plans(planned, ranks, evidence.served)
    check_ratio([*evidence.served, *(each for rank in ranks for each in rank.given)], config)
    check_reports(evidence.journal.reported, ranks, evidence.stats)
    if config.fence is not None:
        assert not any(rank.num_rejected for rank in ranks), "plans did not wait for a report"
        check_undisturbed(planned, undisturbed(folder, config, evidence.num_steps, seed).planned)


def survive(
    folder: Path,
    database_url: str,
    *,
    num_kills: int,
    num_clients: int,
    seed: int,
    mode: FeedbackMode = "latest",
    num_gateways: int = 1,
    num_services: int = 1,
) -> Outcome:
    """Play a job on services of one journal that are struck `num_kills` times.

    Raises:
        AssertionError: names the promise that was broken.
    """
    begin = time.monotonic()
    manifest = make_corpus(folder / "corpora", domains=("de", "en", "fr"), rows_per_domain=301, num_quantiles=7)
    lag = LAG if mode == "fenced" else None
    killing, *playing = np.random.default_rng(seed).spawn(num_clients + 1)
    with ExitStack() as stack:
        services = [stack.enter_context(serving(folder, database_url, num_gateways)) for _ in range(num_services)]
        clients = [
            [stack.enter_context(ReplayClient(each.base_url, retry=PATIENT)) for each in services] for _ in playing
        ]
        clients[0][0].ensure_run(RUN, manifest.name, {**SETTINGS, "feedback": {"mode": mode, "lag": LAG}})
        ranks = [Rank(RUN, i, num_clients, clients[i], rng, seed, lag) for i, rng in enumerate(playing)]
        play(services, ranks, num_kills, killing)
        evidence = gather(services[0], clients[0][0])
    check(evidence, ranks, folder, seed)
    return Outcome(
        kills=num_kills,
        restarts=sum(each.num_starts - 1 for each in services),
        steps=evidence.num_steps,
        batches=sum(each.num_batches for each in ranks),
        reports=sum(each.num_reports for each in ranks),
        rows_acknowledged=sum(len(each.acknowledged) for each in ranks),
        rows_rejected=sum(each.num_rejected for each in ranks),
        epochs=check_epochs(evidence.journal.planned, stratum_sizes(manifest)),
        seconds=time.monotonic() - begin,
    )


def play(services: Sequence[Service], ranks: list[Rank], num_kills: int, rng: np.random.Generator) -> None:
    """Let the ranks train while the services are killed; raises what any of them raised."""
    job = Job()
    with ThreadPoolExecutor(len(ranks)) as threads:
        playing = [threads.submit(rank.play, job) for rank in ranks]
        try:
            kill_often(services, num_kills, rng, playing)
        finally:
            job.stop()
            for each in playing:
                each.result()


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
        postgresql_server(Path(cluster)) as server,
        fresh_database(server.url, "killed") as url,
    ):
        yield url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gateways", type=int, default=1, help="of each service")
    parser.add_argument("--services", type=int, default=1, help="on one journal, asked in turn")
    parser.add_argument("--mode", choices=get_args(FeedbackMode), default="latest", help="when reports count")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, database(wanted.database, Path(folder)) as url:
        outcome = survive(
            Path(folder),
            url,
            num_kills=wanted.kills,
            num_clients=wanted.clients,
            seed=wanted.seed,
            mode=wanted.mode,
            num_gateways=wanted.gateways,
            num_services=wanted.services,
        )
    of_what = f"{wanted.services} services of {wanted.gateways} gateways"
    print(f"{wanted.database}, {wanted.mode}, {of_what}, {wanted.clients} clients, seed {wanted.seed}: {outcome}")


if __name__ == "__main__":
    main()
