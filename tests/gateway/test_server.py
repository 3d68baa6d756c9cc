import http.client
import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import numpy as np

from replay_service.wire.losses import encode_losses
from tests.gateway.worlds import all_of, ask, assert_problem, batch_of, create_run, losses_of, report
from tests.support import free_port, running_service


def connect(base_url: str) -> httpx2.Client:
    return httpx2.Client(base_url=base_url)


def log_lines(root: Path) -> Iterator[dict[str, str]]:
    for line in (root / "serve.log").read_text().splitlines():
        yield json.loads(line)


def half_sent(base_url: str, body: bytes) -> http.client.HTTPConnection:
    """A connection that has sent the first half of a report."""
    connection = http.client.HTTPConnection(urlsplit(base_url).netloc, timeout=20)
    connection.putrequest("POST", "/v1/runs/tune/losses")
    connection.putheader("Content-Type", "application/vnd.apache.arrow.stream")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[: len(body) // 2])
    return connection


def accepts(base_url: str) -> bool:
    """Whether the server still takes new connections."""
    try:
        return httpx2.get(f"{base_url}/healthz").status_code == 200
    except httpx2.TransportError:
        return False


def await_closed(base_url: str) -> None:
    for _ in range(100):
        if not accepts(base_url):
            return
        time.sleep(0.1)
    raise AssertionError("the server goes on taking connections")


def test_sigterm_finishes_open_requests_and_exits_with_success(root: Path) -> None:
    with running_service(root) as (base_url, process), connect(base_url) as client:
        create_run(client)
        rows = losses_of(batch_of(client, 0, 5))
        body = bytes(encode_losses(rows))
        connection = half_sent(base_url, body)
        assert accepts(base_url), "the half-sent report was accepted before this"
        process.send_signal(signal.SIGTERM)
        await_closed(base_url)
        connection.send(body[len(body) // 2 :])
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["accepted"]) == (200, len(rows))
        connection.close()
        assert process.wait(timeout=20) == 0
    assert {"info"} == {line["level"] for line in log_lines(root)}


def test_what_was_answered_survives_a_kill(root: Path) -> None:
    port = free_port()
    with running_service(root, port=port) as (base_url, process), connect(base_url) as client:
        create_run(client)
        rows = losses_of(batch_of(client, 0, 5), num_flips=3)
        assert report(client, rows).json()["accepted"] == len(rows)
        plans, before = ask(client, step=0, num_steps=20).content, all_of(client)
        process.kill()
        assert process.wait(timeout=20) == -signal.SIGKILL
    with running_service(root, port=port) as (base_url, _), connect(base_url) as client:
        assert all_of(client) == before
        assert ask(client, step=0, num_steps=20).content == plans
        assert report(client, rows).json()["duplicate"] == len(rows)


def test_ranks_that_ask_at_once_get_slices_of_one_plan(root: Path) -> None:
    with running_service(root) as (base_url, _), connect(base_url) as client, ThreadPoolExecutor(8) as threads:
        create_run(client, injection_ratio="0.6")
        parts = list(threads.map(lambda rank: batch_of(client, 0, 20, rank, 8), range(8)))
        whole = batch_of(client, 0, 20)
        assert client.get("/v1/runs/tune").json()["next_step"] == 20
        for step in range(20):
            ids = np.concatenate([part.of_step(step).sample_id for part in parts])
            np.testing.assert_array_equal(np.sort(ids), np.sort(whole.of_step(step).sample_id))
        outcomes = list(threads.map(lambda part: report(client, losses_of(part)).json(), [*parts, *parts]))
        assert sum(each["accepted"] for each in outcomes) == len(whole)
        assert sum(each["duplicate"] for each in outcomes) == len(whole)


def test_a_body_over_the_limit_is_refused_and_the_server_goes_on(root: Path) -> None:
    with running_service(root) as (base_url, _), connect(base_url) as client:
        headers = {"content-type": "application/json"}
        response = client.post("/v1/runs/tune/losses", content=b" " * ((16 << 20) + 1), headers=headers)
        assert_problem(response, 413, "body-too-large")
        assert "server" not in response.headers
        assert client.get("/readyz").status_code == 200
