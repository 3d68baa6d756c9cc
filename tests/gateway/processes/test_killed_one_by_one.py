"""Processes of a service that are killed one by one: what was decided for all of them still holds."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.gateway.worlds import bearer, make_token
from tests.support import make_corpus, running_service

SEVERAL = ["--gateways", "2"]


def test_a_gateway_that_starts_while_the_tokens_file_is_gone_lets_nobody_in(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpora")
    token = bearer(make_token(tmp_path, "read"))
    tokens = tmp_path / "tokens.toml"
    with running_service(tmp_path, options=SEVERAL) as (url, service):
        content = tokens.read_text()
        tokens.unlink()
        gateways = [each for each in psutil.Process(service.pid).children() if "gateway" in each.cmdline()]
        for each in gateways:
            each.send_signal(signal.SIGKILL)
        statuses = collect(url, token, 401)
        assert 200 not in statuses, "the file was gone when they started"
        assert httpx2.get(f"{url}/v1/runs").status_code == 401
        tokens.write_text(content)
        collect(url, token, 200)
        assert httpx2.get(f"{url}/v1/runs").status_code == 401


def collect(url: str, headers: dict[str, str], until: int) -> set[int]:
    """The statuses of requests, up to some that are all as expected."""
    found: set[int] = set()
    as_expected = 0
    for _ in range(600):
        with suppress(httpx2.TransportError):
            status = httpx2.get(f"{url}/v1/runs", headers=headers, timeout=30).status_code
            found.add(status)
            as_expected = as_expected + 1 if status == until else 0
            if as_expected == 8:
                return found
        time.sleep(0.05)
    raise AssertionError(f"no row of {until}: {found}")


@pytest.mark.parametrize("options", [[], SEVERAL], ids=["one process", "gateways"])
def test_tokens_that_are_made_after_the_start_are_not_asked_for_by_some_processes_alone(
    tmp_path: Path, options: list[str]
) -> None:
    make_corpus(tmp_path / "corpora")
    with running_service(tmp_path, options=options) as (url, service):
        make_token(tmp_path, "read")
        for each in psutil.Process(service.pid).children():
            if "gateway" in each.cmdline():
                each.send_signal(signal.SIGKILL)
                break
        collect(url, {}, 200)


def test_a_killed_service_leaves_no_folder_behind_for_the_next_one(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpora")
    with running_service(tmp_path, options=SEVERAL) as (_, service):
        mine = folder_of(service)
        for each in (*psutil.Process(service.pid).children(), psutil.Process(service.pid)):
            each.send_signal(signal.SIGKILL)
        service.wait(30)
    assert mine.exists()
    long_ago = time.time() - 3600
    os.utime(mine, (long_ago, long_ago))
    with running_service(tmp_path, options=SEVERAL) as (_, service):
        assert not mine.exists()
        mine = folder_of(service)
    assert not mine.exists()


def folder_of(service: "subprocess.Popen[bytes]") -> Path:
    """The folder of a service's sockets."""
    owner = next(each for each in psutil.Process(service.pid).children() if "owner" in each.cmdline())
    paths = [Path(each.laddr) for each in owner.net_connections("unix") if str(each.laddr).endswith("owner.sock")]
    return paths[0].parent
