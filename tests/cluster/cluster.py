"""A cluster on the hosts of `tests.cluster.hosts`: a database, replicas of the service, and ranks that train."""

import itertools
import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.cluster.hosts import NETWORK, Host, network_of
from tests.databases import SUPERUSER, find_postgresql, make_cluster
from tests.support import make_corpus

REPLICAS: Final = ("replica1", "replica2", "replica3")
TRAINERS: Final = ("trainer0", "trainer1")
_PORT: Final = 8400
PATIENCE_S: Final = 240.0


def await_true(holds: Callable[[], bool], what: str) -> None:
    ends_at = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > ends_at:
            raise TimeoutError(f"it did not come about in {PATIENCE_S:g} s that {what}")
        time.sleep(0.1)


@dataclass(slots=True)
class Cluster:
    """The hosts, and what runs on them.

    Attributes:
        away_s: how long something is paused, silent or cut off.
    """

    folder: Path
    hosts: dict[str, Host]
    lease_s: float
    away_s: float
    database_files: Path

    @property
    def database(self) -> Host:
        return self.hosts["database"]

    @property
    def replicas(self) -> list[Host]:
        return [self.hosts[name] for name in REPLICAS]

    @property
    def database_url(self) -> str:
        return f"postgresql+psycopg://{SUPERUSER}@{self.database.address}:5432/postgres"

    def urls(self, first: int = 0) -> str:
        order = [*self.replicas[first:], *self.replicas[:first]]
        return ",".join(f"http://{each.address}:{_PORT}" for each in order)

    def start_database(self) -> None:
        programs = find_postgresql()
        assert programs is not None, "PostgreSQL is not installed"
        command: list[str | Path] = [
            programs / "postgres",
            "-D",
            self.database_files,
            "-h",
            "0.0.0.0",
            "-k",
            self.database_files,
        ]
        self.database.start(
            ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups", *command],
            self.folder / "database.log",
        )

    def start_replica(self, host: Host) -> None:
        environment = {
            "REPLAY_ROOT": str(self.folder / "root"),
            "REPLAY_CLUSTER": "true",
            "REPLAY_DATABASE_URL": self.database_url,
            "REPLAY_CLUSTER_SECRET_FILE": str(self.folder / "secret"),
            "REPLAY_LEASE_S": str(self.lease_s),
            "REPLAY_DATABASE_TIMEOUT_S": "10",
            "REPLAY_ALLOW_UNAUTHENTICATED": "true",
            "REPLAY_GATEWAYS": "2",
        }
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "replay_service",
            "serve",
            "--root",
            self.folder / "root",
            "--host",
            "0.0.0.0",
        ]
        host.start(command, self.folder / f"{host.name}.log", environment)

    def owner(self) -> Host:
        """The host of the replica that has the lease."""
        said = self.ask(self.database, "lease", self.database_url)
        return next(each for each in self.replicas if said.startswith(f"{each.address}:"))

    def ask(self, host: Host, what: str, *arguments: str) -> str:
        """The answer of a small program on a host; see `main` of `tests.cluster.asking`."""
        command = ["ip", "netns", "exec", host.namespace, sys.executable, "-m", "tests.cluster.asking", what]
        asked = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, check=False)
        if asked.returncode:
            raise ConnectionError(asked.stderr[-2000:])
        return asked.stdout.strip()

    def is_ready(self, host: Host) -> bool:
        with suppress(ConnectionError, subprocess.TimeoutExpired):
            return self.ask(host, "ready", f"http://{host.address}:{_PORT}") == "200"
        return False

    def await_ready(self) -> None:
        await_true(lambda: all(self.is_ready(each) for each in self.replicas), "all replicas are ready")


@dataclass(slots=True)
class Ranks:
    """Two ranks that train."""

    cluster: Cluster
    run: str

    def start(self) -> None:
        for rank, name in enumerate(TRAINERS):
            command = [sys.executable, "-m", "tests.cluster.trainer", self.cluster.urls(rank), self.run, rank, 2]
            host = self.cluster.hosts[name]
            host.start([*map(str, command), self.file(rank)], self.cluster.folder / f"{name}.log")

    def file(self, rank: int) -> Path:
        return self.cluster.folder / f"{self.run}-{rank}.jsonl"

    def lines(self, rank: int) -> list[dict[str, Any]]:
        with suppress(FileNotFoundError):
            return [
                json.loads(each) for each in self.file(rank).read_text().splitlines(keepends=True) if each[-1] == "\n"
            ]
        return []

    def steps(self) -> list[int]:
        return [len(self.lines(rank)) for rank in range(2)]

    def await_steps(self, more: int) -> None:
        least = [each + more for each in self.steps()]

        def has_come() -> bool:
            return all(now >= wanted for now, wanted in zip(self.steps(), least, strict=True))

        await_true(has_come, f"both ranks have trained {more} steps more")

    def stood_still(self, since: float) -> float:
        """The longest time between two steps of a rank since then, seconds."""
        longest = 0.0
        for rank in range(2):
            times = [each["at"] for each in self.lines(rank)]
            before = max((each for each in times if each < since), default=since)
            after = [before, *(each for each in times if each >= since)]
            longest = max(longest, *(later - earlier for earlier, later in itertools.pairwise(after)))
        return longest

    def stop(self) -> int:
        """Let both ranks end at the same step, and say which."""
        end = max(self.steps()) + 10
        for rank in range(2):
            self.file(rank).with_suffix(".stop").write_text(str(end))
        for name in TRAINERS:
            for each in self.cluster.hosts[name].processes:
                assert each.wait(timeout=PATIENCE_S) == 0, f"see {name}.log"
            self.cluster.hosts[name].processes.clear()
        return end


@contextmanager
def running_cluster(folder: Path, lease_s: float, away_s: float) -> Iterator[Cluster]:
    """Three replicas on a fresh database, all of them ready."""
    make_corpus(folder / "root" / "corpora", rows_per_domain=400)
    secret = folder / "secret"
    secret.touch(0o600)
    secret.write_text(secrets.token_hex(32))
    with tempfile.TemporaryDirectory(prefix="postgresql-") as files:
        data = make_cluster(Path(files), NETWORK)
        with network_of("database", *REPLICAS, *TRAINERS) as hosts:
            cluster = Cluster(folder, hosts, lease_s, away_s, data)
            cluster.start_database()
            for each in cluster.replicas:
                cluster.start_replica(each)
            cluster.await_ready()
            yield cluster
