"""The compose files in a real container engine."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from tests.deploy.compose import ALONE, CLUSTER, services_of
from tests.deploy.engine import Project, answer_of, ensure_images, exec_in, has_engine, project_up

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(5400),
    pytest.mark.skipif(not has_engine(), reason="no container engine runs here, or it has no compose"),
]

_SERVICE = "http://127.0.0.1:8400"


def await_true(holds: Callable[[], bool], patience_s: float = 120.0) -> None:
    ends_at = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < ends_at
        time.sleep(1)


def test_the_service_runs_without_rights_and_keeps_its_data(tmp_path: Path) -> None:
    with project_up(ALONE, tmp_path, ["replay-service"]) as project:
        assert answer_of(f"{_SERVICE}/readyz") == {"status": "ok"}
        (name,) = project.states()
        assert exec_in(name, "id", "-u").strip() == "10001"
        assert "CapEff:\t0000000000000000" in exec_in(name, "cat", "/proc/1/status")
        with pytest.raises(AssertionError, match="Read-only file system"):
            exec_in(name, "touch", "/app/x")
        before = exec_in(name, "ls", "/data")
        project.run("up", "--wait", "--detach", "--force-recreate", "replay-service")
        assert exec_in(name, "ls", "/data") == before != ""


def test_the_demo_is_prepared_and_trained_to_its_end(tmp_path: Path) -> None:
    with project_up(ALONE, tmp_path, ["replay-service"], ["demo"]) as project:
        project.run_to_end("trainer")
        stats = answer_of(f"{_SERVICE}/v1/runs/demo/stats")
        assert stats["state"] == "finished" and stats["rows_rehearsed"] > 0


def test_a_cluster_trains_scrapes_and_goes_on_without_its_owner(tmp_path: Path) -> None:
    absent = ensure_images(CLUSTER)
    wanted = [name for name, each in services_of(CLUSTER).items() if each["image"] not in absent]
    running = [name for name in wanted if name not in ("demo", "ray-gpu-worker", "grafana")]
    with project_up(CLUSTER, tmp_path, running, ["metrics", "demo"]) as project:
        assert [answer_of(f"{url}/readyz") for url in urls_of_replicas(project).values()] == [{"status": "ok"}] * 2
        if "prometheus" in running:
            await_true(lambda: [each["health"] for each in targets()] == ["up", "up"])
        project.run_to_end("demo")
        urls = urls_of_replicas(project)
        owner = owner_of([*urls])
        subprocess.run(["docker", "kill", owner], check=True, capture_output=True)
        (left,) = [url for name, url in urls.items() if name != owner]
        await_true(lambda: has_finished(left))


def has_finished(url: str) -> bool:
    """Whether the demo has, as a replica says; it answers as soon as it owns the run."""
    try:
        state: str = answer_of(f"{url}/v1/runs/demo/stats")["state"]
    except HTTPError as error:
        assert error.code == 503
        return False
    return state == "finished"


def urls_of_replicas(project: Project) -> dict[str, str]:
    """The URL of each replica by its name; one that is made anew has another port."""
    return {name: url_of(state) for name, state in project.states().items() if state["Service"] == "replica"}


def url_of(state: dict[str, Any]) -> str:
    (port,) = {each["PublishedPort"] for each in state["Publishers"] if each["PublishedPort"]}
    return f"http://127.0.0.1:{port}"


def targets() -> list[dict[str, str]]:
    found: list[dict[str, str]] = answer_of("http://127.0.0.1:9090/api/v1/targets")["data"]["activeTargets"]
    return found


def owner_of(names: list[str]) -> str:
    """The replica that says that it owns the runs."""

    def is_owner(name: str) -> bool:
        said = subprocess.run(["docker", "logs", name], capture_output=True, text=True, check=True)
        return "owns the runs" in said.stdout + said.stderr

    (owner,) = [name for name in names if is_owner(name)]
    return owner
