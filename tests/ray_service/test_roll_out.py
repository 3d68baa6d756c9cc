"""The service on a Ray cluster of two nodes: brought up, changed node by node, and taken down, by its commands."""

import json
import os
import signal
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from replay_service import __version__
from tests.ray_clusters import RayCluster, ray_cluster
from tests.ray_service.test_supervisor import eventually
from tests.support import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def ports() -> list[int]:
    return [free_port(), free_port()]


@pytest.fixture(scope="module")
def cluster(ports: list[int]) -> Iterator[RayCluster]:
    """Two nodes on this machine, whose environments give each replica ports of its own."""
    own = [
        {"REPLAY_PORT": str(port), "REPLAY_OWNER_PORT": str(free_port()), "REPLAY_OWNER_HOST": "127.0.0.1"}
        for port in ports
    ]
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, ray_cluster(Path(folder)) as started:
        started.start_head(1, **own[0])
        started.add_node(1, **own[1])
        yield started


@pytest.fixture
def config(tmp_path: Path, postgresql_database: str) -> Path:
    secret, path = tmp_path / "cluster-secret", tmp_path / "replay.toml"
    secret.touch(0o600)
    secret.write_text("x" * 40)
    path.write_text(
        f'root = "{tmp_path}"\ndatabase_url = "{postgresql_database}"\ncluster_secret_file = "{secret}"\n'
        "shutdown_delay_s = 1\n"
    )
    return path


def is_ready(port: int, path: str = "/readyz") -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60).close()
    except OSError:
        return False
    return True


def status(cluster: RayCluster) -> list[dict[str, Any]]:
    ended = cluster.command("status", "--json")
    found: list[dict[str, Any]] = json.loads(ended.stdout)
    assert ended.returncode == (0 if found and all(each["is_ready"] for each in found) else 1), ended.stderr
    return found


@contextmanager
def watched(ports: list[int]) -> Iterator[list[bool]]:
    """Whether any replica answers, asked again and again; it is not ready for a moment while the runs change owner."""
    seen, ended = list[bool](), threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            seen.append(any(is_ready(port, "/healthz") for port in ports))

    thread = threading.Thread(target=watch)
    thread.start()
    yield seen
    ended.set()
    thread.join()


def done(said: str) -> list[str]:
    return [line.rpartition(": ")[2] for line in said.splitlines() if line.startswith("node ")]


def test_every_node_serves_is_changed_one_after_the_other_and_stops(
    cluster: RayCluster, ports: list[int], config: Path
) -> None:
    up = ("up", "--cluster", "--config", config)
    begun = cluster.command(*up)
    assert begun.returncode == 0, begun.stderr
    assert done(begun.stderr) == ["started", "started"]
    first = status(cluster)
    assert [each["version"] for each in first] == [__version__] * 2
    assert all(is_ready(port) for port in ports)

    os.kill(first[0]["pid"], signal.SIGKILL)
    eventually(lambda: all(is_ready(port) for port in ports))
    second = status(cluster)
    assert second[0]["pid"] != first[0]["pid"] and second[1]["pid"] == first[1]["pid"]

    assert done(cluster.command(*up).stderr) == ["unchanged", "unchanged"]
    config.write_text(config.read_text() + 'log_level = "debug"\n')
    with watched(ports) as seen:
        assert done(cluster.command(*up).stderr) == ["restarted", "restarted"]
    assert seen and all(seen)
    third = status(cluster)
    assert all(each["is_ready"] for each in third)
    assert {each["pid"] for each in third} & {each["pid"] for each in second} == set()

    ended = cluster.command("down")
    assert "stopped on 2 nodes" in ended.stderr, ended.stderr
    assert not any(is_ready(port) for port in ports)
    assert status(cluster) == []


def test_a_change_that_does_not_work_stops_at_the_first_node_and_says_why(
    cluster: RayCluster, ports: list[int], config: Path
) -> None:
    assert cluster.command("up", "--cluster", "--config", config).returncode == 0
    config.write_text(config.read_text() + "gateways = 0\n")
    # The command reads the file too, and refuses it before any node is touched.
    refused = cluster.command("up", "--cluster", "--config", config)
    assert refused.returncode == 2 and "gateways" in refused.stderr
    assert all(each["is_ready"] for each in status(cluster))

    config.write_text(config.read_text().replace("gateways = 0", 'tls_key = "/nowhere"\ntls_certificate = "/nowhere"'))
    broken = cluster.command("up", "--cluster", "--config", config, "--ready-within-s", "90")
    assert broken.returncode == 2
    assert "was not ready within 90 s" in broken.stderr and "/nowhere" in broken.stderr
    assert sorted(is_ready(port) for port in ports) == [False, True]
    assert "stopped on 2 nodes" in cluster.command("down").stderr


def test_without_a_cluster_of_ray_the_remedy_is_named(cluster: RayCluster, tmp_path: Path) -> None:
    gone = cluster.command("status", RAY_TMPDIR=str(tmp_path))
    assert gone.returncode == 2
    assert "no Ray cluster runs on this machine; start one with `ray start --head`" in gone.stderr
