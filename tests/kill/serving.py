"""A service that can be killed and started again, and its commands."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from tests.support import free_port


@dataclass(slots=True)
class Service:
    """The serving process on one port, as often as it is started."""

    folder: Path
    database_url: str
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

    def start(self) -> None:
        command = [sys.executable, "-m", "replay_service", "serve", *self.options, "--port", str(self.port)]
        with (self.folder / "serve.log").open("ab") as log:
            self._process = subprocess.Popen([*command, "--log-level", "warning"], stderr=log)
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

    def end(self, signal_number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(signal_number)
        return self._process.wait(timeout=60)


@contextmanager
def serving(folder: Path, database_url: str) -> Iterator[Service]:
    service = Service(folder, database_url)
    service.start()
    try:
        service.await_ready()
        yield service
    finally:
        service.end(signal.SIGKILL)


def replay_service(*arguments: str) -> None:
    command = [sys.executable, "-m", "replay_service", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"replay-service {' '.join(arguments[:3])} failed: {done.stderr}"
