"""The service as a process of its own on loopback."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from replay_service.errors import ReplayError

_START_TIMEOUT_S = 60.0


class ServiceDidNotStart(ReplayError):
    slug, title = "service-did-not-start", "The service did not start"


@contextmanager
def service_process(root: Path) -> Iterator[str]:
    """Serve `root` on a free port until the block ends; yields the base URL. Its log is root/service.log."""
    port = _free_port()
    base_url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "replay_service", "serve", "--root", str(root), "--port", str(port)]
    log_path = root / "service.log"
    with log_path.open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ)) as process:
        try:
            _await_ready(base_url, process, log_path)
            yield base_url
        finally:
            process.terminate()


def _await_ready(base_url: str, process: "subprocess.Popen[bytes]", log_path: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx2.get(f"{base_url}/readyz").is_success:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    raise ServiceDidNotStart(f"the service did not become ready; {log_path} says why")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
