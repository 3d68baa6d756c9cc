"""A service that is told to stop while callers use it."""

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.gateway.worlds import assert_problem, batch_of, create_run, losses_of, report
from tests.support import free_port, processes_of, running_service

LONG_S = 200
"""Longer than any test waits: a service that ends sooner has not waited for it."""

GATEWAYS = pytest.mark.parametrize("gateways", [1, 2])


@contextmanager
def service(root: Path, gateways: int, delay_s: float = LONG_S) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    (root / "replay.toml").write_text(f"shutdown_delay_s = {delay_s}\n")
    options = ["--config", root / "replay.toml", "--gateways", str(gateways)]
    with running_service(root, options=options) as (base_url, process):
        with httpx2.Client(base_url=base_url, timeout=60.0) as client:
            create_run(client)
        yield base_url, process
        process.kill()


def await_stopping(base_url: str) -> None:
    """Wait until every process of the service says that it stops."""
    num_in_turn = 0
    for _ in range(1000):
        answer = httpx2.get(f"{base_url}/readyz", timeout=60.0)
        num_in_turn = num_in_turn + 1 if answer.status_code == 503 else 0
        if num_in_turn == 12:
            assert_problem(answer, 503, "stopping")
            return
        time.sleep(0.02)
    raise AssertionError("the service is ready after SIGTERM")


@GATEWAYS
def test_what_comes_after_sigterm_is_answered_until_the_service_is_told_again(root: Path, gateways: int) -> None:
    with service(root, gateways) as (base_url, process), httpx2.Client(base_url=base_url, timeout=60.0) as client:
        process.send_signal(signal.SIGTERM)
        await_stopping(base_url)
        batch = batch_of(client, 0, 4)
        answers = [report(client, losses_of(batch)), client.get("/v1/runs/tune"), client.get("/healthz")]
        assert {(each.status_code, each.headers["connection"]) for each in answers} == {(200, "close")}
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=LONG_S / 2) == 0


@GATEWAYS
def test_a_service_stops_by_itself_after_the_delay(root: Path, gateways: int) -> None:
    with service(root, gateways, delay_s=0.2) as (_, process):
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=LONG_S / 2) == 0


@dataclass(slots=True)
class Caller:
    """Asks on and on over a connection that it keeps, and opens another one when an answer closes it."""

    base_url: str
    closed: list[bool] = field(default_factory=list)

    def ask(self, num_closed: int) -> None:
        """Until so many answers have closed their connection; raises what a lost request raises."""
        connection = http.client.HTTPConnection(urlsplit(self.base_url).netloc, timeout=LONG_S)
        while sum(self.closed) < num_closed:
            connection.request("POST", "/v1/runs/tune/batches", b'{"step": 0}', {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert (answer.status, len(answer.read()) > 0) == (200, True)
            self.closed.append(answer.getheader("connection") == "close")
        connection.close()


@GATEWAYS
def test_sigterm_for_all_processes_loses_no_request(root: Path, gateways: int) -> None:
    with service(root, gateways) as (base_url, process), ThreadPoolExecutor(4) as threads:
        callers = [Caller(base_url) for _ in range(4)]
        asking = [threads.submit(each.ask, 10) for each in callers]
        while not all(len(each.closed) > 10 for each in callers):
            assert not any(each.done() for each in asking)
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGTERM)
        for each in asking:
            each.result(timeout=LONG_S)
        assert all(not each.closed[0] for each in callers)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(timeout=LONG_S / 2) == 0


def test_sigterm_for_all_processes_while_they_start_is_no_failure(root: Path) -> None:
    command = [sys.executable, "-m", "replay_service", "serve", "--root", root, "--port", free_port(), "--gateways", 2]
    for _ in range(2):
        with (
            (root / "serve.log").open("ab") as log,
            subprocess.Popen([str(each) for each in command], stderr=log, start_new_session=True) as process,
        ):
            while not processes_of(process, "owner"):
                assert process.poll() is None
                time.sleep(0.001)
            os.killpg(process.pid, signal.SIGTERM)
            assert process.wait(timeout=LONG_S / 2) == 0, (root / "serve.log").read_text()
