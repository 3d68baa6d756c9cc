"""Kill a serving process again and again while the ranks of a job use it, then hold it to every promise.

python -m tests.kill.kill --kills 200 --database postgresql --clients 4 --seed 0 --mode fenced
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from replay_service.sampling.run_config import FEEDBACK_MODES, FeedbackMode, RunConfig
from tests.databases import find_postgresql, fresh_database, postgresql_server
from tests.kill.promises import (
    Exported,
    check_epochs,
    check_plans,
    check_ratio,
    check_reports,
    check_undisturbed,
    read_export,
    stratum_sizes,
    undisturbed,
)
from tests.kill.ranks import MOST_STEPS_A_WINDOW, Given, Job, Rank, steps_of
from tests.kill.serving import Service, replay_service, serving
from tests.support import make_corpus
from trainer.client import ReplayClient, RetryPolicy

RUN: Final = "killed"
SETTINGS: Final[dict[str, Any]] = {
    "global_batch_size": 32,
    "injection_ratio": "0.3",
    "seed": 3,
    "report_window_steps": 512,
}
LAG: Final = MOST_STEPS_A_WINDOW + 4
"""In fenced mode. A window may have as many steps; the rest is what a rank may hold back."""
PATIENT: Final = RetryPolicy(give_up_after_s=60.0, first_wait_s=0.02, longest_wait_s=0.05)

_SHARE_KILLED_AT_START: Final = 0.125


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
    planned, config = evidence.journal.planned, evidence.config
    check_plans(planned, ranks, evidence.served)
    check_ratio([*evidence.served, *(each for rank in ranks for each in rank.given)], config)
    check_reports(evidence.journal.reported, ranks, evidence.stats)
    if config.fence is not None:
        assert not any(rank.num_rejected for rank in ranks), "plans did not wait for a report"
        check_undisturbed(planned, undisturbed(folder, config, evidence.num_steps, seed).planned)


def survive(
    folder: Path, database_url: str, *, num_kills: int, num_clients: int, seed: int, mode: FeedbackMode = "latest"
) -> Outcome:
    """Play a job on a service that is killed `num_kills` times.

    Raises:
        AssertionError: names the promise that was broken.
    """
    begin = time.monotonic()
    manifest = make_corpus(folder / "corpora", domains=("de", "en", "fr"), rows_per_domain=301, num_quantiles=7)
    lag = LAG if mode == "fenced" else None
    killing, *playing = np.random.default_rng(seed).spawn(num_clients + 1)
    with serving(folder, database_url) as service, ExitStack() as clients:
        connected = [clients.enter_context(ReplayClient(service.base_url, retry=PATIENT)) for _ in playing]
        connected[0].ensure_run(RUN, manifest.name, {**SETTINGS, "feedback": {"mode": mode, "lag": LAG}})
        ranks = [Rank(RUN, i, num_clients, connected[i], rng, seed, lag) for i, rng in enumerate(playing)]
        play(service, ranks, num_kills, killing)
        evidence = gather(service, connected[0])
    check(evidence, ranks, folder, seed)
    return Outcome(
        kills=num_kills,
        restarts=service.num_starts - 1,
        steps=evidence.num_steps,
        batches=sum(each.num_batches for each in ranks),
        reports=sum(each.num_reports for each in ranks),
        rows_acknowledged=sum(len(each.acknowledged) for each in ranks),
        rows_rejected=sum(each.num_rejected for each in ranks),
        epochs=check_epochs(evidence.journal.planned, stratum_sizes(manifest)),
        seconds=time.monotonic() - begin,
    )


def play(service: Service, ranks: list[Rank], num_kills: int, rng: np.random.Generator) -> None:
    """Let the ranks train while the service is killed; raises what any of them raised."""
    job = Job()
    with ThreadPoolExecutor(len(ranks)) as threads:
        playing = [threads.submit(rank.play, job) for rank in ranks]
        try:
            kill_often(service, num_kills, rng, playing)
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
    parser.add_argument("--mode", choices=FEEDBACK_MODES, default="latest", help="when reports count")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, database(wanted.database, Path(folder)) as url:
        outcome = survive(
            Path(folder),
            url,
            num_kills=wanted.kills,
            num_clients=wanted.clients,
            seed=wanted.seed,
            mode=wanted.mode,
        )
    print(f"{wanted.database}, {wanted.mode}, {wanted.clients} clients, seed {wanted.seed}: {outcome}")


if __name__ == "__main__":
    main()
