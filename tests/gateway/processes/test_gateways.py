"""A service of several gateways: processes that serve batches on one port, before the one that owns the runs."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from replay_service.wire.batches import decode_batch
from replay_service.wire.losses import encode_losses
from replay_trainer.client import ReplayClient, RetryPolicy
from tests.gateway.test_server import await_closed, half_sent
from tests.gateway.worlds import (
    JSON,
    all_of,
    ask,
    assert_problem,
    batch_of,
    bearer,
    create_run,
    losses_of,
    make_token,
    report,
)
from tests.support import grow_corpus, processes_of, running_service

SEVERAL = ["--gateways", "2"]
PATIENT = RetryPolicy(give_up_after_s=60.0, first_wait_s=0.02, longest_wait_s=0.2)

REQUESTS: list[tuple[str, str, dict[str, str], dict[str, Any]]] = [
    ("POST", "/v1/runs/tune/batches", {}, {"json": {"step": 0}}),
    ("POST", "/v1/runs/tune/batches", {}, {"json": {"step": 3, "num_steps": 9, "rank": 1, "world_size": 2}}),
    ("POST", "/v1/runs/tune/batches", {}, {"json": {"step": 0, "num_steps": 500}}),
    ("POST", "/v1/runs/tune/batches", {}, {"json": {"step": 0, "num_steps": 40, "compression": "zstd"}}),
    ("POST", "/v1/runs/tune/batches", JSON, {"json": {"step": 5, "num_steps": 2}}),
    ("POST", "/v1/runs/tune/batches", {"accept": "text/html"}, {"json": {"step": 5}}),
    ("POST", "/v1/runs/tune/batches", {}, {"json": {"step": 10**18}}),
    ("POST", "/v1/runs/tune/batches", {}, {"json": {"step": 1, "rank": 4}}),
    ("POST", "/v1/runs/tune/batches", {}, {"content": b"{"}),
    ("POST", "/v1/runs/nobody/batches", {}, {"json": {"step": 0}}),
    ("POST", "/v1/runs/No%20Name/batches", {}, {"json": {"step": 0}}),
    ("GET", "/v1/runs/tune/batches", {}, {}),
    ("GET", "/v1/runs/tune", {}, {}),
    ("HEAD", "/v1/runs/tune", {}, {}),
    ("GET", "/v1/runs/tune/strata", {}, {}),
    ("GET", "/v1/runs/tune/samples?limit=3&order=visits", {}, {}),
    ("GET", "/v1/corpora/wiki", {}, {}),
    ("GET", "/v1/nope?a=b", {}, {}),
    ("GET", "/healthz", {}, {}),
    ("GET", "/v1/runs", {"host": "evil.example"}, {}),
    ("POST", "/v1/runs/tune/batches", {"host": "evil.example"}, {"json": {"step": 0}}),
    ("PATCH", "/v1/runs/tune", {}, {"json": {"flor": 1}}),
    ("POST", "/v1/runs/tune/losses", {"content-type": "text/plain"}, {"content": b"x"}),
    ("POST", "/v1/runs/tune/losses", {}, {"content": [b"in ", b"chunks"]}),
]
"""Requests that change nothing after the first time."""


@pytest.fixture
def admin(root: Path) -> dict[str, str]:
    return bearer(make_token(root, "admin", "chief"))


def client_of(base_url: str, headers: dict[str, str] | None = None) -> httpx2.Client:
    return httpx2.Client(base_url=base_url, headers=headers, timeout=60.0)


def prepare(client: httpx2.Client) -> None:
    """A run with reports, and 500 steps planned."""
    assert create_run(client, injection_ratio="0.6").status_code == 201
    assert report(client, losses_of(batch_of(client, 0, 9), num_flips=4)).status_code == 200
    batch_of(client, 0, 500)


def answers(client: httpx2.Client) -> Iterator[tuple[str, int, dict[str, str], bytes]]:
    for method, path, headers, content in REQUESTS:
        response = client.request(method, path, headers=headers, **content)
        fields = {name: value for name, value in response.headers.items() if name != "date"}
        yield f"{method} {path} {headers}", response.status_code, fields, response.content


def log_of(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "serve.log").read_text().splitlines()]


def test_several_gateways_answer_as_one_process_does_byte_for_byte(root: Path, admin: dict[str, str]) -> None:
    with running_service(root) as (base_url, _), client_of(base_url, admin) as client:
        prepare(client)
        of_one, audited_of_one = list(answers(client)), audited(root)
        refused_of_one = httpx2.post(f"{base_url}/v1/runs/tune/batches", json={"step": 0})
    (root / "serve.log").unlink()
    with running_service(root, options=SEVERAL) as (base_url, _), client_of(base_url, admin) as client:
        for expected, found in zip(of_one, answers(client), strict=True):
            assert found == expected
        refused = httpx2.post(f"{base_url}/v1/runs/tune/batches", json={"step": 0})
        assert (refused.status_code, refused.content) == (401, refused_of_one.content)
        batch = batch_of(client, 500, 3)
        assert report(client, losses_of(batch)).json()["accepted"] == len(batch)
        every = all_of(client)
    audits = audited(root)
    assert {each["route"] for each in audits if each["status"] == 401} == {"/v1/runs/{run}/batches"}
    assert {each["client"] for each in audits} == {"127.0.0.1"}
    num_prepared = 4
    assert audits[: len(audited_of_one) - num_prepared] == audited_of_one[num_prepared:]
    with running_service(root) as (base_url, _), client_of(base_url, admin) as client:
        assert all_of(client) == every


def audited(root: Path) -> list[dict[str, Any]]:
    """The audit lines, without their times."""
    lines = [line for line in log_of(root) if line["event"] == "audit"]
    return [{name: value for name, value in line.items() if name != "timestamp"} for line in lines]


def test_nobody_but_a_gateway_says_who_a_caller_is(root: Path) -> None:
    with running_service(root, options=SEVERAL) as (base_url, _), client_of(base_url) as client:
        client.headers["replay-gateway-client"] = "10.9.9.9 1 https"
        assert create_run(client).status_code == 201
        assert_problem(client.post("/plans", json={"run": "tune", "first_step": 0, "num_steps": 1}), 404, "not-found")
    assert [each["client"] for each in audited(root)] == ["127.0.0.1"]


def test_a_killed_gateway_goes_unnoticed_by_a_client_that_retries_and_comes_back(root: Path) -> None:
    with (
        running_service(root, options=SEVERAL) as (base_url, service),
        client_of(base_url) as client,
        ReplayClient(base_url, retry=PATIENT) as patient,
    ):
        create_run(client)
        whole = batch_of(client, 0, 60)
        gateways = processes_of(service, "gateway")
        assert len(gateways) == 2
        for step in range(60):
            if step in (10, 30):
                subprocess.run(["kill", "-9", str(gateways[step // 20])], check=True)
            batch = patient.batch("tune", step)
            np.testing.assert_array_equal(batch.sample_id, whole.of_step(step).sample_id)
        for _ in range(100):
            if len(processes_of(service, "gateway")) == 2:
                break
            time.sleep(0.1)
        again = processes_of(service, "gateway")
        assert len(again) == 2
        assert set(again).isdisjoint(gateways)
    assert [each["exit_code"] for each in log_of(root) if "started again" in each["event"]] == [-9, -9]
    assert service.returncode == 0


def test_a_service_whose_owner_is_killed_ends_and_says_so(root: Path) -> None:
    with running_service(root, options=SEVERAL) as (_, service):
        (owner,) = processes_of(service, "owner")
        subprocess.run(["kill", "-9", str(owner)], check=True)
        assert service.wait(timeout=60) == 1
    errors = [each["event"] for each in log_of(root) if each["level"] == "error"]
    assert "the process that owns the runs has ended, and the service with it" in errors


def test_sigterm_finishes_open_requests_of_all_processes_and_exits_with_success(root: Path) -> None:
    with running_service(root, options=SEVERAL) as (base_url, service), client_of(base_url) as client:
        create_run(client)
        rows = losses_of(batch_of(client, 0, 5))
        body = bytes(encode_losses(rows))
        connection = half_sent(base_url, body)
        client.close()
        time.sleep(0.5)
        service.send_signal(signal.SIGTERM)
        await_closed(base_url)
        connection.send(body[len(body) // 2 :])
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["accepted"]) == (200, len(rows))
        connection.close()
        assert service.wait(timeout=60) == 0
    assert {"info"} == {line["level"] for line in log_of(root)}


def test_no_process_outlives_a_service_that_is_killed(root: Path) -> None:
    with running_service(root, options=SEVERAL) as (base_url, service):
        children = [*processes_of(service, "gateway"), *processes_of(service, "owner")]
        service.kill()
        await_closed(base_url)
        for _ in range(300):
            if not any(is_running(pid) for pid in children):
                break
            time.sleep(0.1)
        assert not any(is_running(pid) for pid in children)


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("options", [(), SEVERAL])
def test_a_port_of_another_program_is_refused_in_one_sentence(root: Path, options: Sequence[str]) -> None:
    with running_service(root) as (base_url, _):
        port = base_url.rpartition(":")[2]
        command = [sys.executable, "-m", "replay_service", "serve", "--root", root, "--port", port, *options]
        done = subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        (said,) = done.stderr.splitlines()
        assert said.startswith(f"The address cannot be used: 127.0.0.1:{port} cannot be listened on: Address already")


def test_batches_of_corpora_that_grow_are_served_from_their_latest_generation(root: Path) -> None:
    with running_service(root, options=SEVERAL) as (base_url, _), client_of(base_url) as client:
        create_run(client, injection_ratio="1")
        batch_of(client, 0, 3)
        grow_corpus(root / "corpora")
        assert client.post("/v1/runs/tune/adopt", json={}).status_code == 200
        batch = batch_of(client, 3, 20)
        assert batch.header.generation == 2
        assert (batch.length > 0).all()
        assert decode_batch(ask(client, step=3, num_steps=20).content).header == batch.header
