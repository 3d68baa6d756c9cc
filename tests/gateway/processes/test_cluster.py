"""Replicas of a cluster: their owner is killed, paused, stopped; another one goes on, and nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from sqlalchemy import text

from replay_service.ledger.database import engine_of
from replay_service.ledger.service_lease import ServiceLease
from replay_trainer.client import ReplayClient, RetryPolicy
from tests.databases import fresh_database
from tests.gateway.processes.test_gateways import is_running
from tests.gateway.worlds import assert_problem, batch_of, create_run, losses_of
from tests.support import free_port, make_corpus, processes_of, running_service

SHORT_LEASE_S = "5"
"""Where leases pass. A holder must show that it is alive within two thirds of that, on a busy machine too."""
LONG_LEASE_S = "60"
PATIENT = RetryPolicy(give_up_after_s=120.0, first_wait_s=0.02, longest_wait_s=0.5)
CLUSTER_LINK = {"replay-gateway-client": '["127.0.0.1", 1, "http"]', "replay-gateway-version": "1"}


@dataclass(frozen=True, slots=True)
class Replica:
    url: str
    owner_url: str
    service: "subprocess.Popen[bytes]"

    @property
    def candidate(self) -> int:
        """Its process; one that has ended is started again after a while."""
        await_true(lambda: len(processes_of(self.service, "owner")) == 1, "a candidate runs")
        (found,) = processes_of(self.service, "owner")
        return found


@dataclass(frozen=True, slots=True)
class Cluster:
    root: Path
    database_url: str
    secret_file: Path
    stack: ExitStack
    lease_s: str

    def replica(self, root: Path | None = None, **variables: str) -> Replica:
        """One more, when it is ready; by default on the root that all share."""
        owner_port = free_port()
        environment = self.environment(owner_port) | variables
        url, service = self.stack.enter_context(running_service(root or self.root, environment=environment))
        return Replica(url, f"http://127.0.0.1:{owner_port}", service)

    def environment(self, owner_port: int) -> dict[str, str]:
        return {
            "REPLAY_CLUSTER": "true",
            "REPLAY_DATABASE_URL": self.database_url,
            "REPLAY_CLUSTER_SECRET_FILE": str(self.secret_file),
            "REPLAY_OWNER_HOST": "127.0.0.1",
            "REPLAY_OWNER_PORT": str(owner_port),
            "REPLAY_LEASE_S": self.lease_s,
        }

    def holder(self) -> tuple[int, str]:
        """Epoch and address of the owner."""
        engine = engine_of(self.database_url)
        found = ServiceLease(engine).read()
        engine.dispose()
        return found.epoch, found.address

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.root / "serve.log").read_text().splitlines() if line[:1] == "{"]


@contextmanager
def cluster_on(root: Path, database_url: str, lease_s: str) -> Iterator[Cluster]:
    make_corpus(root / "corpora")
    with ExitStack() as stack:
        yield Cluster(root, database_url, secret_file(root, "0123456789" * 4), stack, lease_s)


def secret_file(folder: Path, secret: str) -> Path:
    path = folder / f"secret-{secret[:4]}"
    path.write_text(secret)
    path.chmod(0o600)
    return path


@pytest.fixture
def cluster(tmp_path: Path, postgresql_database: str) -> Iterator[Cluster]:
    with cluster_on(tmp_path, postgresql_database, SHORT_LEASE_S) as made:
        yield made


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, postgresql_url: str) -> Iterator[tuple[Cluster, Replica, Replica]]:
    """A cluster of two replicas, the owner first; tests leave them as they are."""
    with (
        fresh_database(postgresql_url, "test_pair") as url,
        cluster_on(tmp_path_factory.mktemp("pair"), url, LONG_LEASE_S) as made,
    ):
        yield made, made.replica(), made.replica()


def await_true(found: Callable[[], bool], what: str) -> None:
    ends_at = time.monotonic() + 90
    while not found():
        assert time.monotonic() < ends_at, what
        time.sleep(0.05)


@dataclass(slots=True)
class Trainer:
    """Gets the batches of steps one after the other, and reports them.

    A lease may change hands at any time where all cores are busy, so everything is asked again until it is answered.
    """

    client: ReplayClient
    sampled: list[np.ndarray] = field(default_factory=list)

    def train(self, until: int) -> None:
        for step in range(len(self.sampled), until):
            batch = self.client.batch("tune", step)
            self.client.report("tune", losses_of(batch))
            self.sampled.append(batch.sample_id)


@contextmanager
def training(url: str) -> Iterator[Trainer]:
    with ReplayClient(url, retry=PATIENT) as client:
        yield Trainer(client)


def test_any_replica_serves_and_the_plans_survive_the_owner(cluster: Cluster) -> None:
    first = cluster.replica()
    second = cluster.replica()
    with training(second.url) as trainer:
        settings = {"global_batch_size": 8, "injection_ratio": "0.6", "feedback": {"mode": "fenced"}}
        trainer.client.ensure_run("tune", "wiki", settings)
        trainer.train(10)

        os.kill(first.candidate, signal.SIGKILL)  # its host is lost
        first.service.kill()
        trainer.train(20)
        epoch, address = cluster.holder()
        assert epoch > 1 and address == second.owner_url.removeprefix("http://")

        third = cluster.replica()
        stopped = second.candidate
        os.kill(stopped, signal.SIGSTOP)
        with training(third.url) as elsewhere:
            elsewhere.train(25)
        taken = cluster.holder()
        assert taken[0] > epoch and taken[1] == third.owner_url.removeprefix("http://")
        os.kill(stopped, signal.SIGCONT)
        trainer.train(30)
        assert cluster.holder() == taken, "a candidate that was paused writes nothing, and asks the new owner"

        third.service.send_signal(signal.SIGTERM)
        trainer.train(40)
        assert third.service.wait(timeout=60) == 0
        assert cluster.holder()[0] > taken[0]

        os.kill(second.candidate, signal.SIGKILL)
        trainer.train(45)
        assert cluster.holder()[1] == second.owner_url.removeprefix("http://"), "it is started again, and has it back"
        whole = trainer.client.batch("tune", 0, num_steps=45)
        for step, ids in enumerate(trainer.sampled):
            np.testing.assert_array_equal(ids, whole.of_step(step).sample_id)
        assert trainer.client.stats("tune")["rows_rehearsed"] == sum(map(len, trainer.sampled))
        assert trainer.client.report("tune", losses_of(whole)).duplicate == len(whole), "no report was lost"


def test_a_replica_that_knows_no_owner_lives_and_is_not_ready(cluster: Cluster) -> None:
    replica = cluster.replica()
    engine = engine_of(cluster.database_url)
    with engine.begin() as connection:  # which nobody can change until this ends
        connection.execute(text("UPDATE service_lease SET epoch = epoch + 1, holder = 'gone', address = ''"))
        await_true(lambda: httpx2.get(f"{replica.url}/readyz").status_code == 503, "it cannot keep its lease")
        assert httpx2.get(f"{replica.url}/healthz").status_code == 200
        assert_problem(httpx2.get(f"{replica.url}/v1/runs"), 503, "not-owner")
    engine.dispose()
    for path in ("/readyz", "/v1/runs"):
        await_true(lambda path=path: httpx2.get(f"{replica.url}{path}").status_code == 200, "it takes the lease again")


def test_no_process_outlives_a_replica_that_is_killed_with_the_reader_of_its_log(cluster: Cluster) -> None:
    port = free_port()
    environment = {**os.environ, **cluster.environment(free_port())}
    command = [sys.executable, "-m", "replay_service", "serve", "--root", str(cluster.root), "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, start_new_session=True) as service:
        assert service.stderr is not None
        await_true(lambda: is_ready(f"http://127.0.0.1:{port}"), "it is ready")
        children = [*processes_of(service, "owner"), *processes_of(service, "gateway")]
        service.stderr.close()
        service.kill()
    await_true(lambda: not any(map(is_running, children)), "all have ended")


def is_ready(url: str) -> bool:
    with suppress(httpx2.TransportError):
        return httpx2.get(f"{url}/readyz").status_code == 200
    return False


def test_strangers_and_other_releases_are_refused_at_the_owners_port(pair: tuple[Cluster, Replica, Replica]) -> None:
    _, replica, _ = pair
    secret = {"replay-gateway-secret": "0123456789" * 4}
    for headers in ({}, CLUSTER_LINK, CLUSTER_LINK | {"replay-gateway-secret": "x" * 40}):
        for method, path in (("POST", "/plans"), ("GET", "/v1/runs"), ("GET", "/owner"), ("GET", "/readyz")):
            answer = httpx2.request(method, replica.owner_url + path, headers=headers)
            assert_problem(answer, 403, "access-error")
            assert answer.headers["replay-link-refused"] == "stranger"
    ours = CLUSTER_LINK | secret | {"replay-gateway-epoch": "1"}
    assert httpx2.get(f"{replica.owner_url}/v1/runs", headers=ours).status_code == 200
    old = httpx2.get(f"{replica.owner_url}/v1/runs", headers=ours | {"replay-gateway-version": "0"})
    assert (old.status_code, old.headers["replay-link-refused"]) == (503, "version")
    late = httpx2.get(f"{replica.owner_url}/v1/runs", headers=ours | {"replay-gateway-epoch": "0"})
    assert (late.status_code, late.headers["replay-link-refused"]) == (503, "not-owner")
    assert_problem(httpx2.get(f"{replica.url}/owner"), 404, "not-found")


def test_each_replica_answers_scrapes_for_itself_and_the_owner_tells_of_the_runs(
    pair: tuple[Cluster, Replica, Replica],
) -> None:
    _, owner, other = pair
    with httpx2.Client(base_url=other.url, timeout=60.0) as client:
        create_run(client)
        batch_of(client, 0, 3)
    told = [httpx2.get(f"{each.url}/metrics").text for each in (owner, other)]
    assert ["replay_run_next_step" in each and 'run="tune"' in each for each in told] == [True, False]
    assert 'route="/v1/runs/{run}/batches"' not in told[0] and 'route="/v1/runs/{run}/batches"' in told[1]


@pytest.mark.parametrize("has_another", [False, True], ids=["no-corpus", "another-corpus"])
def test_a_replica_whose_root_is_not_shared_says_so(
    pair: tuple[Cluster, Replica, Replica], tmp_path: Path, has_another: bool
) -> None:
    cluster, owner, _ = pair
    run = f"not-shared-{int(has_another)}"
    (tmp_path / "corpora").mkdir()
    if has_another:
        make_corpus(tmp_path / "corpora", rows_per_domain=60)
    elsewhere = cluster.replica(tmp_path)
    with httpx2.Client(base_url=owner.url, timeout=60.0) as client:
        assert create_run(client, run=run).status_code == 201
        with ReplayClient(owner.url) as trainer:
            asked = trainer.batch(run, 0)
        refused = httpx2.post(f"{elsewhere.url}/v1/runs/{run}/batches", json={"step": 1})
        if has_another:
            assert_problem(refused, 409, "corpus-replaced")
        else:
            assert_problem(refused, 503, "corpus-unavailable")
            assert "share one `root`" in refused.json()["detail"] and "`corpora_url`" in refused.json()["detail"]
        assert httpx2.get(f"{elsewhere.url}/v1/runs/{run}").status_code == 200
    with ReplayClient(f"{elsewhere.url},{owner.url}", retry=PATIENT) as trainer:
        if not has_another:
            np.testing.assert_array_equal(trainer.batch(run, 0).sample_id, asked.sample_id)


def test_a_replica_with_another_secret_says_so(pair: tuple[Cluster, Replica, Replica]) -> None:
    cluster, *_ = pair
    stranger = cluster.replica(REPLAY_CLUSTER_SECRET_FILE=str(secret_file(cluster.root, "x" * 40)))
    answer = httpx2.get(f"{stranger.url}/v1/runs")
    assert_problem(answer, 503, "service-unavailable")
    assert "different secrets (cluster_secret_file)" in answer.json()["detail"]
    assert not any("x" * 40 in json.dumps(line) or "0123456789" * 4 in json.dumps(line) for line in cluster.log())
