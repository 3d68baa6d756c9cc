"""Prometheus's own tools, where they are installed (Debian's package `prometheus`)."""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx2
import pytest
import yaml

from tests.support import free_port

PROVISIONED: Final = Path(__file__).parents[2] / "deploy/prometheus"
RULES: Final = PROVISIONED / "alerts.yml"


def promtool() -> str:
    return _found("promtool")


def prometheus() -> str:
    return _found("prometheus")


def _found(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"there is no {name} in PATH; Debian's package `prometheus` has it")
    return path


@contextmanager
def scraping(urls: Sequence[str], folder: Path, rules: Path = RULES, every: str = "200ms") -> Iterator[httpx2.Client]:
    """A Prometheus with the provisioned configuration, but for the targets, the rules and the pace."""
    config = yaml.safe_load((PROVISIONED / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": every, "evaluation_interval": every}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [each.removeprefix("http://") for each in urls]}]
    config["rule_files"] = [str(rules)]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        prometheus(),
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                yield client
        finally:
            process.terminate()
            process.wait(timeout=20)
