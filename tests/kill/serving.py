"""A service that can be killed and started again, and its commands."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import httpx2
import numpy as np

from tests.support import free_port, processes_of

Blow = Literal["kill", "terminate", "kill owner", "kill gateway"]
"""What a service suffers: SIGKILL or SIGTERM for its whole process group, or SIGKILL for one process of it."""

_EXIT_CODES: Final[dict[Blow, int]] = {"kill": -signal.SIGKILL, "terminate": 0, "kill owner": 1}


@dataclass(slots=True)
class Service:
    """A service on one port, as often as it is started."""

    folder: Path
    database_url: str
    num_gateways: int = 1
    port: int = field(default_factory=free_port)
    num_starts: int = 0
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def options(self) -> list[str]:
        """Which journal, for every command of `replay-service`."""
        return ["--root", str(self.folder), "--database-url", self.database_url]

    @property
    def blows(self) -> list[Blow]:
        """What this service can suffer; of one process, SIGKILL is what matters most."""
        several: list[Blow] = ["kill", "terminate", "kill owner", "kill gateway"]
        return several if self.num_gateways > 1 else ["kill", "kill", "kill", "terminate"]

    def start(self) -> None:
        command = [sys.executable, "-m", "replay_service", "serve", *self.options, "--port", str(self.port)]
        command += ["--gateways", str(self.num_gateways), "--log-level", "warning"]
        with (self.folder / "serve.log").open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log, start_new_session=True)
        self.num_starts += 1

    def await_ready(self) -> None:
        assert self._process is not None
        for _ in range(600):
            assert self._process.poll() is None, f"the service stopped; see {self.folder / 'serve.log'}"
            try:
                if httpx2.get(f"{self.base_url}/readyz").status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError("the service did not become ready")

    def suffer(self, blow: Blow, rng: np.random.Generator) -> None:
        """Strike, and start the service again if it has ended, which it must do with the right exit code."""
        assert self._process is not None
        if blow == "kill gateway":
            os.kill(rng.choice(processes_of(self._process, "gateway")), signal.SIGKILL)
            return
        if blow == "kill owner":
            os.kill(*processes_of(self._process, "owner"), signal.SIGKILL)
        else:
            os.killpg(self._process.pid, signal.SIGKILL if blow == "kill" else signal.SIGTERM)
        exit_code = self._process.wait(timeout=120)
        assert exit_code == _EXIT_CODES[blow], f"exit code {exit_code} after {blow!r}"
        time.sleep(rng.uniform(0.0, 0.1))
        self.start()

    def close(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=60)


@contextmanager
def serving(folder: Path, database_url: str, num_gateways: int = 1) -> Iterator[Service]:
    service = Service(folder, database_url, num_gateways)
    service.start()
    try:
        service.await_ready()
        yield service
    finally:
        service.close()


def replay_service(*arguments: str) -> None:
    command = [sys.executable, "-m", "replay_service", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"replay-service {' '.join(arguments[:3])} failed: {done.stderr}"
